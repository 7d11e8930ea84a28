"""Whole stores: verify, convert, merge, extend, compare, archive."""
