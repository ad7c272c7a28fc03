"""A server under load on this machine: many clients at once compared with one after another.

    python benchmarks/serving.py CHECKPOINT [--clients 64] [--seconds 60]

`llada serve` runs in a process of its own. First every kind of request (prompt, length, seed, policy) is sent alone:
that gives the answers that all later ones must equal, and the speed of one at a time. Then so many clients ask at once,
each for one text after the other, until the time is over; what is on its way then is waited for. Refusals by a full
queue are counted, and tried again as the server asks. Memory is the resident memory of the server's process. The first
visible step is the time from a request to /v1/diffusion until its first step has arrived, on an idle server.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

LETTERS = "to be or not to be that is the question whether tis nobler in the mind to suffer"
POLICIES = ("random", "left_to_right", "entropy", None)
PATIENCE = 600.0
SAMPLES = 30  # of the first visible step


@dataclass
class Load:
    """What the clients met."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)
    wrong: int = 0


def kinds_of(length: int, n: int = 32) -> list[dict[str, Any]]:
    """Requests of different prompts, lengths and ways to sample, the same ones in each run."""
    drawn = random.Random(0)
    kinds = []
    for number in range(n):
        prompt = LETTERS[: drawn.randrange(1, length // 4)]
        policy = POLICIES[number % len(POLICIES)]
        body = {"prompt": prompt, "max_tokens": drawn.randrange(length // 8, length // 2), "seed": number}
        kinds.append(body | ({"policy": policy} if policy else {}))
    return kinds


def text_of(answer: httpx.Response) -> str:
    answer.raise_for_status()
    return str(answer.json()["choices"][0]["text"])


def one_at_a_time(url: str, kinds: list[dict[str, Any]]) -> tuple[list[str], float]:
    """The answer to each kind of request alone, and the tokens of a second."""
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        text_of(client.post("/v1/completions", json=kinds[0]))
        begun = time.perf_counter()
        texts = [text_of(client.post("/v1/completions", json=kind)) for kind in kinds]
        return texts, sum(kind["max_tokens"] for kind in kinds) / (time.perf_counter() - begun)


def first_steps(url: str) -> list[float]:
    """Milliseconds from a request until its first step has arrived."""
    found = []
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        for seed in range(SAMPLES):
            begun = time.perf_counter()
            with client.stream("POST", "/v1/diffusion", json={"prompt": "to be", "seed": seed}) as answer:
                next(line for line in answer.iter_lines() if '"type": "step"' in line)
            found.append(1000 * (time.perf_counter() - begun))
    return found


async def many(url: str, kinds: list[dict[str, Any]], expected: list[str], n_clients: int, seconds: float) -> Load:
    """Let so many clients ask at once for so long."""
    load, until = Load(), time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=n_clients)

    async def ask(client: httpx.AsyncClient, number: int) -> None:
        drawn = random.Random(number)
        while time.perf_counter() < until:
            kind = drawn.randrange(len(kinds))
            begun = time.perf_counter()
            answer = await client.post("/v1/completions", json=kinds[kind])
            if answer.status_code == 429:
                load.refused += 1
                await asyncio.sleep(min(float(answer.headers["retry-after"]), max(0.0, until - time.perf_counter())))
            elif answer.status_code != 200:
                load.errors.append(answer.text)
            else:
                load.seconds.append(time.perf_counter() - begun)
                load.tokens += kinds[kind]["max_tokens"]
                load.wrong += text_of(answer) != expected[kind]

    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:
        await asyncio.gather(*(ask(client, number) for number in range(n_clients)))
    return load


def measure(checkpoint: str, n_clients: int, seconds: float) -> dict[str, Any]:
    """Run a server, and return what was measured."""
    command = [sys.executable, "-m", "llada", "serve", "--checkpoint", checkpoint, "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            url = next(word for word in server.stdout.readline().split() if word.startswith("http://"))
            return measured(url, psutil.Process(server.pid), n_clients, seconds)
        finally:
            server.terminate()


def measured(url: str, process: psutil.Process, n_clients: int, seconds: float) -> dict[str, Any]:
    model = httpx.get(f"{url}/v1/diffusion/model", timeout=PATIENCE).json()
    kinds = kinds_of(model["max_length"])
    expected, alone = one_at_a_time(url, kinds)
    steps = first_steps(url)
    asyncio.run(many(url, kinds, expected, n_clients, seconds / 6))  # until memory has taken its size
    before, begun = process.memory_info().rss, time.perf_counter()
    load = asyncio.run(many(url, kinds, expected, n_clients, seconds))
    took, after = time.perf_counter() - begun, process.memory_info().rss
    ordered = sorted(load.seconds)
    return {
        "clients": n_clients,
        "seconds": round(took, 1),
        "texts": len(ordered),
        "errors": load.errors[:3],
        "refused": load.refused,
        "wrong": load.wrong,
        "tokens_per_second": round(load.tokens / took),
        "tokens_per_second_one_at_a_time": round(alone),
        "ratio": round(load.tokens / took / alone, 2),
        "seconds_median": round(statistics.median(ordered), 2),
        "seconds_p99": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "first_step_ms_median": round(statistics.median(steps), 1),
        "first_step_ms_most": round(max(steps), 1),
        "memory_mb_before": before // 10**6,
        "memory_mb_after": after // 10**6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    print(json.dumps(measure(options.checkpoint, options.clients, options.seconds), indent=2))


if __name__ == "__main__":
    main()
