"""A frozen base spread over the devices of several processes, by PyTorch's FSDP2 (`torch.distributed.fsdp`).

Only what is frozen is spread: each process keeps a part of every weight, and the whole of a layer's weights only while
that layer computes. Adapters and head are small, stay whole on every process, and are trained, averaged, saved and
resumed as they are without shards. Accelerate's own way of FSDP2 would spread these, too, and with them the optimizer's
moments and every file of a fold.
"""

from __future__ import annotations

from typing import Any

import torch

from lora_cls.modeling.classifier import HEAD, SequenceClassifier
from lora_cls.modeling.layers import find_layers


def device_mesh(device: torch.device) -> Any:
    """All processes of the launch and their devices, a `DeviceMesh`; every process makes it at the same time."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def shard_base(model: SequenceClassifier, mesh: Any) -> None:
    """Spread the frozen weights of a model, which lies in the memory of the CPU, over the processes.

    One layer after the other is brought to the device and cut there; what is trained is brought there whole. No process
    waits for another one meanwhile.

    Parameters
    ----------
    mesh : see `device_mesh`
    """
    from torch.distributed.fsdp import fully_shard

    device = torch.device(mesh.device_type)
    head = getattr(model.base, HEAD).parameters()  # with the copy that PEFT keeps of it, and may save
    whole = {parameter for parameter in model.parameters() if parameter.requires_grad} | set(head)
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True, "ignored_params": whole}
    for layer in find_layers(model.base)[1]:
        fully_shard(layer, **options)
    fully_shard(model.base, **options)
    for parameter in whole:
        parameter.data = parameter.data.to(device)
