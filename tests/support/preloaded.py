"""What each rank would import or make again in its first second: the server that is forked for ranks has it."""

from importlib import import_module

from PIL import Image

from dcgan_dist import cli

for name in ("support.recording", "torch.distributed.algorithms.ddp_comm_hooks", "torch.utils.serialization"):
    import_module(name)
Image.preinit()
cli.load([])  # the parser of all options
