"""A model of training LLaDA-8B on up to 1,024 cards: memory of a card, bytes of a step, tokens per second, cost.

    python benchmarks/communication.py [--length 4096] [--sequences 1] [--micro_batches 1] [--flops 2.95e14]
        [--dollars 2.5]

Nothing here is measured on many cards. The assumptions are those of `llada.costs.communication` and the links below;
the speed of one card is that of LoRA on one H100 (docs/RESULTS.md: 5,672 tokens/s, at 4 P + 2 P FLOPs a token with
activation checkpointing, is 295 TFLOP/s).
"""

import argparse
from dataclasses import replace

from llada.checkpoints.hub import LLADA_8B
from llada.costs.activations import TrainingSetting
from llada.costs.communication import Cluster, Shared, Way, step_seconds, step_traffic
from llada.costs.flops import training_flops_per_token
from llada.costs.memory import training_memory
from llada.costs.parameters import total_parameters
from llada.models.head import LOGITS_AT_ONCE

CLUSTERS = {
    "8 cards a node, NVLink 450 GB/s, 8 x 400 Gbit/s between nodes": Cluster(8, 450e9, 400e9),
    "the same with 1 x 100 Gbit/s between nodes": Cluster(8, 450e9, 12.5e9),
}
CARDS = (8, 16, 64, 256, 1024)
WAYS: tuple[Way, ...] = ("ddp", "fsdp", "hsdp")
SETTING = TrainingSetting(
    1, 4096, bf16=True, activation_checkpointing=True, on_cpu=False, logits_at_once=LOGITS_AT_ONCE
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--sequences", type=int, default=1, help="sequences of a card that go through it together")
    parser.add_argument("--micro_batches", type=int, default=1, help="batches of a card whose gradients are added up")
    parser.add_argument("--flops", type=float, default=2.95e14, help="FLOP per second that a card reaches")
    parser.add_argument("--dollars", type=float, default=2.5, help="price of a card for an hour")
    given = parser.parse_args()

    parameters, layers = total_parameters(LLADA_8B), LLADA_8B.n_layers
    shared = Shared(parameters, layers, given.micro_batches)
    tokens = given.length * given.sequences * given.micro_batches
    computing = tokens * training_flops_per_token(LLADA_8B, given.length) * 4 / 3 / given.flops
    print(f"{parameters:,} weights, all trained; {tokens:,} tokens a card and step, {computing:.2f} s of computing")
    for name, cluster in CLUSTERS.items():
        print(f"\n{name}\n")
        print(
            "| cards | way | GB a card sends to other nodes | s of communication | s a step | tokens/s | of ideal | $ |"
        )
        print("|---:|---|---:|---:|---:|---:|---:|---:|")
        for cards in CARDS:
            for way in WAYS:
                if cards <= cluster.cards_per_node and way == "hsdp":
                    continue  # it is fsdp
                traffic = step_traffic(way, shared, cards, cluster)
                seconds = step_seconds(computing, traffic)
                speed, sent = cards * tokens / seconds, traffic.between / min(cards, cluster.cards_per_node) / 1e9
                price = given.dollars * cards / 3600 / speed * 1e9
                print(f"| {cards:,} | {way} | {sent:.1f} | {traffic.seconds:.2f} | {seconds:.2f} | {speed:,.0f} "
                      f"| {computing / seconds:.0%} | {price:,.0f} |")  # fmt: skip
    print("\n$ is the price of 1e9 tokens. GB of a card under fsdp, for what it keeps and at the peak of a step:\n")
    for cards in (1, *CARDS):
        memory = training_memory(LLADA_8B, replace(SETTING, length=given.length, processes=cards))
        print(f"- {cards:,}: {memory.fixed / 1e9:.1f}, {memory.total / 1e9:.1f}")


if __name__ == "__main__":
    main()
