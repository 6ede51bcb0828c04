"""A backend that says that it is MySQL: a database that there is no outbox for, without its driver."""
