"""The page of `llada watch`: runs while they train, read and never written."""
