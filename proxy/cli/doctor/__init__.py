"""The doctor: what stands between a client and the proxy, and between the proxy and what it needs, as verdicts.

An address with a token enters (`remote`, run from anywhere), or a configuration (`local`, run on the proxy's machine);
verdicts leave, one after the other, as text or JSON (`verdict`). A check is a function that returns verdicts; what to
change stands in `changes` and `hops`, and docs/troubleshooting.md has the same. No verdict holds a token, key or
password.
"""

from proxy.cli.doctor.verdict import Verdict

__all__ = ["Verdict"]
