"""How long each frame of a film is shown."""

START_MS, PLAY_MS, END_MS = 700, 6000, 3000
SHORTEST_MS, LONGEST_MS = 60, 500  # of a frame in between; browsers slow down below 20


def durations_of(n_frames: int) -> list[int]:
    """Return the milliseconds of each frame, in whole hundredths of a second, as GIF has them.

    The start is held for a moment and the end for longer, because the film begins anew after it.
    """
    if n_frames < 2:
        return [END_MS] * n_frames
    between = n_frames - 2
    each = min(LONGEST_MS, max(SHORTEST_MS, PLAY_MS // max(1, between))) // 10 * 10
    return [START_MS, *[each] * between, END_MS]
