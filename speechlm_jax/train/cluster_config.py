"""Settings for the hosts of a run; the command line reads them before JAX is imported."""

import dataclasses

from speechlm_jax.errors import UserError

PORT = 8476  # JAX's own port before 0.8.1; firewalls of older slices allow it


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """The hosts of a run.

    Attributes:
      hosts: number of hosts; 0 asks the machine (Cloud TPU, Slurm), 1 is a run on this host alone.
      host: number of this host, counted from 0.
      coordinator: address of host 0, with a port.
      start_seconds: seconds for which hosts wait for each other at the start.
      heartbeat_seconds: seconds without a heartbeat after which a host counts as dead and the
        others end.
      run: name of the run, the same on all hosts; hosts of another run are refused.
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
