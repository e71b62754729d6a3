"""Runs launches under several lane orders and keeps what they did."""

from collections.abc import Sequence

from metal_sim import launch
from metal_sim.counters import Launch
from metal_sim.findings import Finding, MetalFinding

active: list["Simulator"] = []  # the simulators that are installed, the innermost last


class Simulator:
    """Runs launches, in several lane orders, and keeps what they did.

    ``launches`` has one record a launch (counters of the first order), ``findings`` all findings.
    """

    def __init__(self, orders: Sequence[str], collect: bool, max_steps: int) -> None:
        self.launches: list[Launch] = []
        self.findings: list[Finding] = []
        self._orders = [launch.Order.parse(order) for order in orders]
        self._collect = collect
        self._max_steps = max_steps

    def take_findings(self) -> list[Finding]:
        """The findings so far; they count as seen."""
        taken, self.findings = self.findings, []
        return taken

    def kinds(self) -> set[str]:
        """Which kinds of findings there are."""
        return {finding.kind for finding in self.findings}

    def run(self, dispatch: launch.Dispatch) -> list[bytes]:
        """Run a dispatch under every order; the outputs of the first."""
        outcomes = [launch.run(dispatch, order, self._max_steps) for order in self._orders]
        self.launches.append(outcomes[0].launch)
        found = list(launch.compiled(dispatch.spec).refused)
        seen = [finding for outcome in outcomes for finding in outcome.findings]
        found += {(f.kind, f.buffer, f.line): f for f in reversed(seen)}.values()
        if not found and not outcomes[0].launch.atomics:
            found = self._differences(dispatch, outcomes)
        self.report(found)
        return outcomes[0].outputs

    def report(self, found: list[Finding]) -> None:
        """Keep findings; raise unless they are being collected."""
        self.findings += found
        if found and not self._collect:
            raise MetalFinding(found)

    def _differences(
        self, dispatch: launch.Dispatch, outcomes: list[launch.Outcome]
    ) -> list[Finding]:
        """A finding for each output that depends on the order of the lanes."""
        found = []
        for i, name in enumerate(dispatch.spec.body.output_names):
            if len({outcome.outputs[i] for outcome in outcomes}) > 1:
                message = f"output {name} differs between lane orders"
                found.append(
                    Finding("order_dependent", dispatch.spec.body.name, message, buffer=name)
                )
        return found
