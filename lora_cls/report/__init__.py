"""What a person reads of a run: card, page and snippets, the comparison of several, and sentences."""
