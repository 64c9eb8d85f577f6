"""Charges of rates that are given back at the server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.limits import gcra
from proxy.limits.redis.accounts import read_tats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.limits.gcra import Limit
    from proxy.limits.quotas import Quotas
    from proxy.limits.redis.accounts import UserAccount
    from proxy.limits.redis.channel import Answer
    from proxy.limits.redis.link import Link
    from proxy.limits.redis.scripts import Scripts


def send_refund(scripts: Scripts, link: Link, account: UserAccount, quotas: Quotas, answer: Sequence[int]) -> None:
    """Give back what is left of the charge that the server answered; one that is away keeps it."""
    limits = quotas.limits
    if not limits:
        return
    now = link.clock.now()
    keys: list[bytes] = []
    arguments: list[int] = []
    given: dict[Limit, int] = {}
    for index, (limit, tat) in enumerate(zip(limits, read_tats(limits, answer, 2), strict=True)):
        key = account.rate_key(limit)
        keys += [key, key + b":given"]
        arguments += [limit.quota, limit.window, *divmod(limit.window, limit.quota)]
        arguments += answer[2 + 3 * index : 5 + 3 * index]
        given[limit] = gcra.unpaid(limit, tat, now)
    # About right at once, for the answer that this one's client gets; the server says exactly how it is.
    account.subtract(given)

    def on_answer(told: Answer) -> None:
        if isinstance(told, list):
            # With its clock: by an older one, what is unused would look used.
            link.clock.update(told[0])
            account.update(quotas, read_tats(limits, told, 1))

    if link.channel is not None:
        link.channel.send(scripts.refund.whole_command(keys, arguments), on_answer)
