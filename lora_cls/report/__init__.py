"""What a person reads of a run: the model card in its folder."""
