"""Certificates: RFC 8555 orders, challenges, the store on disk, renewal."""
