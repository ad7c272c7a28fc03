"""Numbers in words for people."""


def bytes_in_words(n_bytes: float) -> str:
    """Write an amount of memory in decimal units: "1.9 MB", "820 MB", "1.4 GB", "128 GB"."""
    if n_bytes < 9.95e6:
        return f"{n_bytes / 1e6:.1f} MB"
    if n_bytes < 1e9:
        return f"{n_bytes / 1e6:.0f} MB"
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 99.95e9 else f"{n_bytes / 1e9:,.0f} GB"


def number_of(n: int, noun: str) -> str:
    """Write how many there are of something with a regular plural: "1 shard", "1,024 shards"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration_in_words(seconds: float) -> str:
    """Write a duration: "45 s", "3 min 20 s", "5 h 10 min", "3.2 days", "4.1 years"."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    if seconds < 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    days = seconds / 86400
    return f"{days:.1f} days" if days < 365 else f"{days / 365:,.1f} years"


def count_in_words(n: float) -> str:
    """Write a large number: "820", "15.2M", "8.02B"."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if n >= 0.9995 * size:
            return f"{n / size:.3g}{letter}"
    return f"{n:.3g}"
