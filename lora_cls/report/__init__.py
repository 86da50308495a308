"""What a person reads of a run: the model card and the page in its folder, and tables on the terminal."""
