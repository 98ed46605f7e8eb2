"""The outcome of a deployment: the chosen network, the artifact of each precision, and the baseline."""

from __future__ import annotations

from dataclasses import dataclass

from hnas.deployment.build import Refused
from hnas.deployment.flow import Baseline, Proof
from hnas.deployment.judge import JudgedArtifact
from hnas.deployment.plan import Plan
from hnas.pareto import Candidate
from hnas.space import Arch


@dataclass(frozen=True)
class Result:
    """The outcome of a deployment.

    proof: the chosen network with its artifacts; one of them is kept.
    front: the Pareto front of the search, cheapest first; empty for a user's own network.
    searched: the precision of the latencies in ``front``.
    """

    plan: Plan
    baseline: Baseline
    proof: Proof
    front: tuple[Candidate, ...] = ()
    searched: str = ""

    @property
    def arch(self) -> Arch | None:
        """Return the architecture of the chosen subnet; None for a user's own network."""
        return self.proof.network.arch

    @property
    def rows(self) -> tuple[JudgedArtifact, ...]:
        """Return the artifact of each precision that was tried, with its verdict."""
        return self.proof.rows

    @property
    def refused(self) -> tuple[Refused, ...]:
        """Return the precisions without an artifact."""
        return self.proof.refused

    @property
    def kept(self) -> JudgedArtifact:
        """Return the artifact that is in the bundle."""
        assert self.proof.kept is not None
        return self.proof.kept
