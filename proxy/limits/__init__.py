"""How much a user may ask: rates of requests (GCRA), leases for concurrent streams, token rates, budgets: see `Store`.

A `Principal` enters with each request; an `Admission` leaves, which holds a lease and can be refunded, or a 429 or 503
error. Where the plan limits tokens or money, `reserve` takes an estimate for the admission, and `settle` charges what
the exchange took: `token_limits` are the plan's, `token_account` what is known of a user, `token_status` decides.

The stores are the rooms `memory`, for one worker, and `redis`, for several. `rate_limit_fields` writes a user's
`RateStatus` as header fields. A store also keeps tickets, because it is what workers share.
`AuthFailures` counts what no store has to know: bad credentials, by client address.
"""

from proxy.limits.messages import too_many_ticket_bodies
from proxy.limits.rate_limit_fields import rate_limit_fields
from proxy.limits.store import Admission, LimitState, RateStatus, Spent, Store

__all__ = ["Admission", "LimitState", "RateStatus", "Spent", "Store", "rate_limit_fields", "too_many_ticket_bodies"]
