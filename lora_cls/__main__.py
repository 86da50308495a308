"""`python -m lora_cls`: the command line, for launchers that start a module: `accelerate launch -m lora_cls run ...`."""

from lora_cls.cli import main

if __name__ == "__main__":
    main()
