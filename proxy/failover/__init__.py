"""What is known of upstreams and their keys while requests run: who rests, who is left out, who may be asked again.

The outcome of each attempt enters; a key to ask with, an order of targets, and whether a request moves on leave. Pure
but for the clock, which is handed in: nothing here sends a request or waits. One `UpstreamStates` a worker, which
outlives a reload. Who asks whom, and in which order, is `exchange.moves`' to know.
"""

from proxy.failover.budget import RetryBudget
from proxy.failover.keys import Key, credential_field
from proxy.failover.policy import Outcome
from proxy.failover.states import Lease, UpstreamState, UpstreamStates

__all__ = ["Key", "Lease", "Outcome", "RetryBudget", "UpstreamState", "UpstreamStates", "credential_field"]
