"""What a person reads of a run: the card and the page in its folder, snippets, the comparison of runs, and sentences."""
