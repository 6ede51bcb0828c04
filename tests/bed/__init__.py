"""The test bed: real brokers, a broker that follows a script, and a network that fails on demand.

Four tools, each usable alone:

* `rabbitmq.RabbitNode` is a RabbitMQ node of our own, to be killed, suspended and started again;
* `proxy.Proxy` stands between a client and a broker and breaks what passes;
* `fake_broker.FakeBroker` speaks AMQP 0-9-1 just as a test tells it to;
* `fixtures` hands them to tests.
"""
