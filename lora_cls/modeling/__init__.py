"""Pretrained models: where they come from, how they are loaded, pooled, adapted, saved and reloaded."""
