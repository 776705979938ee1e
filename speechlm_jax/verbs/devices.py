"""The devices of this machine -> the mesh over which a command's language model is split."""

import jax
from jax.sharding import Mesh

from speechlm_jax.errors import UserError
from speechlm_jax.sharding import MeshConfig, make_mesh


def decoding_mesh(tensor: int = 1) -> Mesh | None:
    """Returns a mesh over all devices that splits requests over them; None if there is only one.

    Args:
      tensor: devices that share each request, and split the weights.

    Raises:
      UserError: the number of devices is no multiple of `tensor`.
    """
    devices = jax.device_count()
    if devices % tensor:
        raise UserError(f"--tensor {tensor}: does not divide the {devices} devices of this machine")
    return None if devices == 1 else make_mesh(MeshConfig(fsdp=-1, tensor=tensor))
