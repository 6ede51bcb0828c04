"""RabbitMQ: supervised connections, and a data plane of our own on them."""
