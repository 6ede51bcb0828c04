package main

import (
	"context"
	"encoding/json"

	"github.com/ThreeDotsLabs/watermill"
	wamqp "github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"
)

// watermillClient is Watermill's router over watermill-amqp. A subscriber hands over one message at a time, and a
// publish takes a channel of the pool until it is confirmed: a subscriber a worker, a channel an event in flight.
type watermillClient struct {
	told      told
	config    wamqp.Config
	publisher *wamqp.Publisher
	router    *message.Router
}

// declared is a topology that is there already.
type declared struct{}

func (declared) BuildTopology(*amqp.Channel, wamqp.BuildTopologyParams, wamqp.Config, watermill.LoggerAdapter) error {
	return nil
}

func (declared) ExchangeDeclare(*amqp.Channel, string, wamqp.Config) error { return nil }

func newWatermill(t told) client {
	config := wamqp.NewDurableTopicConfig(t.url, t.exchange, t.queue)
	config.TopologyBuilder = declared{}
	config.Consume.Qos.PrefetchCount = prefetch
	config.Publish.Mandatory = true
	config.Publish.ConfirmDelivery = true
	config.Publish.ChannelPoolSize = 1
	if t.role == "publish_in_flight" || t.role == "latency" {
		config.Publish.ChannelPoolSize = inFlight
	}
	config.Marshaler = wamqp.DefaultMarshaler{PostprocessPublishing: func(publishing amqp.Publishing) amqp.Publishing {
		publishing.ContentType = "application/json"
		publishing.Type = typeName
		return publishing
	}}
	c := &watermillClient{told: t, config: config}
	if t.role != "consume" && t.role != "consume_slow" {
		var err error
		c.publisher, err = wamqp.NewPublisher(config, watermill.NopLogger{})
		check(err)
	}
	return c
}

func (c *watermillClient) publish(order orderPlaced) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	event := message.NewMessage(watermill.NewUUID(), body)
	event.Metadata.Set("event-version", "1")
	event.Metadata.Set("entity-type", "order")
	return c.publisher.Publish(typeName, event)
}

func (c *watermillClient) send(orderPlaced) (func() error, error) {
	panic("Watermill awaits each confirm")
}

func (c *watermillClient) consume(workers int, handle func(order orderPlaced)) (err error) {
	if workers > 1 {
		c.config.Consume.Qos.PrefetchCount = prefetch / workers
	}
	subscriber, err := wamqp.NewSubscriber(c.config, watermill.NopLogger{})
	if err != nil {
		return err
	}
	if c.router, err = message.NewRouter(message.RouterConfig{}, watermill.NopLogger{}); err != nil {
		return err
	}
	for range workers {
		c.router.AddNoPublisherHandler(watermill.NewUUID(), typeName, subscriber, func(event *message.Message) error {
			var order orderPlaced
			if err := json.Unmarshal(event.Payload, &order); err != nil {
				return err
			}
			handle(order)
			return nil
		})
	}
	go func() { check(c.router.Run(context.Background())) }()
	<-c.router.Running()
	return nil
}

func (c *watermillClient) close() {
	if c.router != nil {
		check(c.router.Close())
	}
	if c.publisher != nil {
		check(c.publisher.Close())
	}
}
