"""What is said to people."""

from llada.system.errors import UserError


def assert_one_sentence(error: UserError) -> None:
    assert str(error).endswith(".")
    assert "\n" not in str(error)
