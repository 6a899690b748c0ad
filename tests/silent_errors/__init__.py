"""Reported failures in which a wrong result comes without a word: what is right, one test for each report."""
