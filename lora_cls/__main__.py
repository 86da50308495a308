"""`python -m lora_cls`, the command line; `accelerate launch -m lora_cls run ...` starts it by this name."""

from lora_cls.cli import main

if __name__ == "__main__":
    main()
