"""Names of tensors, without the parts that training programs add."""

from collections.abc import Collection

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Wrappers' names, from torch.compile, FSDP and activation checkpointing: anywhere in a name."""
PREFIXES, OWN_PREFIX = ("module.", "base_model.", "model."), "model."
"""Prefixes of DataParallel and peft, and the one that the published names begin with, which may be missing."""


def plain_names(names: Collection[str], expected: Collection[str]) -> tuple[dict[str, str], str | None]:
    """Map each name to the one that a network expects, and describe the difference in words.

    Nothing counts as different if all names are right, or if removing the known parts does not lead to other names than
    before, or leads to one name twice: names are then left as they are.
    """
    plain = {name: _plain_name(name, expected) for name in names}
    changed = next((name for name in names if plain[name] != name), None)
    if changed is None or len(set(plain.values())) < len(plain):
        return {name: name for name in names}, None
    wanted = plain[changed]
    if changed.endswith(wanted):
        return plain, f"{changed.removesuffix(wanted)!r} in front"
    if wanted == OWN_PREFIX + changed:
        return plain, f"no {OWN_PREFIX!r} in front"
    return plain, f"{changed!r} instead of {wanted!r}"


def _plain_name(name: str, expected: Collection[str]) -> str:
    """Return the name that is expected, or the name itself if none is."""
    if name in expected:
        return name
    plain = name
    for wrapper in WRAPPERS:
        plain = plain.replace(wrapper, "")
    while True:
        for candidate in (plain, OWN_PREFIX + plain):
            if candidate in expected:
                return candidate
        prefix = next((prefix for prefix in PREFIXES if plain.startswith(prefix)), None)
        if prefix is None:
            return name
        plain = plain.removeprefix(prefix)
