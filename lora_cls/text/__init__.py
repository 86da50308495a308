"""From texts to token ids: prompts, chat templates, written answers, pieces and batches. The tokenizer is handed in."""
