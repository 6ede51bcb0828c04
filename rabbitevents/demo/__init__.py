"""A demonstration: an order service and an inventory service, with every effect counted. `make demo` runs it."""
