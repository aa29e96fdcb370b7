"""Delivery of certificates to a running HAProxy, over its runtime API."""
