package main

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// amqp091 is RabbitMQ's own client for Go, by hand: one channel to publish, one to consume.
type amqp091 struct {
	told       told
	connection *amqp.Connection
	publishing *amqp.Channel
	consuming  *amqp.Channel
}

func newAmqp091(t told) client {
	connection, err := amqp.Dial(t.url)
	check(err)
	publishing, err := connection.Channel()
	check(err)
	check(publishing.Confirm(false))
	return &amqp091{told: t, connection: connection, publishing: publishing}
}

func (c *amqp091) send(order orderPlaced) (func() error, error) {
	body, err := json.Marshal(order)
	if err != nil {
		return nil, err
	}
	confirm, err := c.publishing.PublishWithDeferredConfirm(c.told.exchange, typeName, true, false, amqp.Publishing{
		ContentType:  "application/json",
		DeliveryMode: amqp.Persistent,
		MessageId:    uuid.NewString(),
		Timestamp:    time.Now(),
		Type:         typeName,
		Headers:      amqp.Table{"event-version": int32(1), "entity-type": "order"},
		Body:         body,
	})
	if err != nil {
		return nil, err
	}
	return func() error {
		if !confirm.Wait() {
			return errors.New("not confirmed")
		}
		return nil
	}, nil
}

func (c *amqp091) publish(order orderPlaced) error {
	wait, err := c.send(order)
	if err != nil {
		return err
	}
	return wait()
}

func (c *amqp091) consume(workers int, handle func(order orderPlaced)) (err error) {
	if c.consuming, err = c.connection.Channel(); err != nil {
		return err
	}
	if err = c.consuming.Qos(prefetch, 0, false); err != nil {
		return err
	}
	deliveries, err := c.consuming.Consume(c.told.queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for range workers {
		go func() {
			for delivery := range deliveries {
				var order orderPlaced
				check(json.Unmarshal(delivery.Body, &order))
				handle(order)
				check(delivery.Ack(false))
			}
		}()
	}
	return nil
}

func (c *amqp091) close() {
	if c.consuming != nil {
		check(c.consuming.Close())
	}
	check(c.connection.Close())
}
