"""The hosts of a run, as the command line reads them: known before JAX is imported."""

import dataclasses

from speechlm_jax.errors import UserError

PORT = 8476  # JAX's own before 0.8.1; firewalls of older slices know it


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """The hosts of a run.

    Attributes:
      hosts: how many; 0 asks the machine (Cloud TPU, Slurm), 1 is a run of its own.
      host: which of them this is.
      coordinator: address of host 0, with a port.
      start_seconds: how long hosts wait for each other at the start.
      heartbeat_seconds: after which a host that is not heard of is dead, and the others end.
      run: names the run, the same on all hosts: hosts of another run get no seat in this one.
    """

    hosts: int = 1
    host: int = 0
    coordinator: str = f"localhost:{PORT}"
    start_seconds: int = 1800
    heartbeat_seconds: int = 100
    run: str = ""

    def __post_init__(self) -> None:
        if self.hosts < 0 or not 0 <= self.host < max(self.hosts, 1):
            raise UserError(f"host {self.host} of {self.hosts}: hosts are counted from 0")
        port = self.coordinator.rpartition(":")[2]
        is_port = port.isascii() and port.isdigit() and 0 < int(port[:6]) < 2**16
        if ":" not in self.coordinator or not is_port:
            raise UserError(f"coordinator {self.coordinator}: give HOST:PORT, e.g. 10.0.0.2:{PORT}")
