"""stripe: a payment, pages of customers, a file at its other host."""

import io
import os

import stripe
from how import KEY, LINES, LOCAL

exec(LINES)
print("created", stripe.PaymentIntent.create(amount=100, currency="eur").id)
print("listed", [one.id for one in stripe.Customer.list(limit=1).auto_paging_iter()])
print("uploaded", stripe.File.create(purpose="dispute_evidence", file=io.BytesIO(b"evidence")).id)
