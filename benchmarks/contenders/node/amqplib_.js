// amqplib, as its documentation shows it: promises to set up, a confirm channel with callbacks to publish.
// benchmarks/README.md says what the words are.
"use strict";

const { randomUUID } = require("node:crypto");
const { readFileSync } = require("node:fs");
const { join } = require("node:path");

const IN_FLIGHT = 500;
const PREFETCH = 200;
const WORKERS = 100; // of a handler that takes 5 ms: as many as are let out at a time
const QUIET = 300; // milliseconds before the end: one too many would be seen, and acknowledgements are
const TYPE = "order.placed";
const CATALOGUE = [
  { product_id: "product-1001", title: "Kettle, 1.7 litres", quantity: 2, price: 21.5 },
  { product_id: "product-1002", title: "Teapot, stoneware", quantity: 1, price: 39.75 },
  { product_id: "product-1003", title: "Tea, Assam", quantity: 1, price: 4.5 },
];

const [role, url, exchange, queue, ...numbers] = process.argv.slice(2);
const [events, warmUp, first, items, note, rate] = numbers.map(Number);
const total = events + warmUp;

const order = (number) => ({
  order_id: `order-${String(number).padStart(8, "0")}`,
  customer_id: `customer-${String(number % 997).padStart(5, "0")}`,
  currency: "EUR",
  total: 87.25,
  items: CATALOGUE.slice(0, items),
  note: "x".repeat(note),
});

const numberOf = (order) => Number(order.order_id.slice("order-".length)) - first;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

const clock = () => {
  const wall = performance.now();
  const cpu = process.cpuUsage();
  return () => {
    const seconds = (performance.now() - wall) / 1e3;
    const used = process.cpuUsage(cpu);
    return { events, seconds, cpu_seconds: (used.user + used.system) / 1e6 };
  };
};

// --- publishing ---

const publisher = async (connection) => {
  const channel = await connection.createConfirmChannel();
  return (order) =>
    new Promise((done, failed) =>
      channel.publish(
        exchange,
        TYPE,
        Buffer.from(JSON.stringify(order)),
        {
          persistent: true,
          mandatory: true,
          contentType: "application/json",
          messageId: randomUUID(),
          timestamp: Math.floor(Date.now() / 1e3),
          type: TYPE,
          headers: { "event-version": 1, "entity-type": "order" },
        },
        (error) => (error ? failed(error) : done()),
      ),
    );
};

const side_by_side = (in_flight) => async (publish, from, count) => {
  let number = from;
  const next = async () => {
    while (number < from + count) await publish(order(number++));
  };
  await Promise.all(Array.from({ length: in_flight }, next));
};

const batches = async (publish, from, count) => {
  for (let start = from; start < from + count; start += IN_FLIGHT) {
    const size = Math.min(IN_FLIGHT, from + count - start);
    await Promise.all(Array.from({ length: size }, (_, i) => publish(order(start + i))));
  }
};

const publishing = (all) => async (connection) => {
  const publish = await publisher(connection);
  await all(publish, first, warmUp);
  const reading = clock();
  await all(publish, first + warmUp, events);
  return reading();
};

// --- consuming ---

const consumer = async (connection, prefetch, handle) => {
  const channel = await connection.createChannel();
  await channel.prefetch(prefetch);
  await channel.consume(queue, async (message) => {
    const waits = handle(JSON.parse(message.content.toString()));
    if (waits) await waits;
    channel.ack(message);
  });
  return channel;
};

const consuming = (prefetch, pause) => async (connection) => {
  const seen = new Uint8Array(total);
  let handled = 0;
  let distinct = 0;
  let reading;
  let found;
  await new Promise((done, failed) => {
    const take = (order) => {
      const number = numberOf(order);
      if (number >= 0 && number < total && !seen[number]) {
        seen[number] = 1;
        distinct++;
      }
      handled++;
      if (handled === warmUp) reading = clock();
      if (handled === total) {
        setImmediate(() => {
          found = reading(); // what is due to be acknowledged was written
          done();
        });
      }
    };
    const handle = pause ? (order) => sleep(pause).then(() => take(order)) : take;
    consumer(connection, prefetch, handle).catch(failed);
  });
  await sleep(QUIET);
  return { ...found, handled, distinct };
};

const latency = async (connection) => {
  const publish = await publisher(connection);
  const published = new Float64Array(total);
  const delays = [];
  const waits = [];
  let complete;
  const done = new Promise((resolve) => (complete = resolve));
  await consumer(connection, PREFETCH, (order) => {
    delays.push(performance.now() - published[numberOf(order)]);
    if (delays.length === total) complete();
  });
  const start = performance.now() + 300;
  let number = 0;
  while (number < total) {
    while (number < total && start + (number * 1e3) / rate <= performance.now()) {
      published[number] = performance.now();
      waits.push(publish(order(first + number++)));
    }
    await (start + (number * 1e3) / rate - performance.now() > 2 ? sleep(1) : new Promise(setImmediate));
  }
  await Promise.all([done, ...waits]);
  await sleep(QUIET);
  const measured = delays.slice(warmUp).sort((a, b) => a - b);
  const at = (share) => measured[Math.floor(share * (measured.length - 1))];
  return { events, p50_ms: at(0.5), p99_ms: at(0.99), p999_ms: at(0.999) };
};

const ROLES = {
  publish_one: publishing(side_by_side(1)),
  publish_in_flight: publishing(side_by_side(IN_FLIGHT)),
  publish_batches: publishing(batches),
  consume: consuming(PREFETCH, 0),
  consume_slow: consuming(WORKERS, 5),
  latency,
};

const main = async () => {
  if (role === "versions") {
    const told = JSON.parse(readFileSync(join(__dirname, "node_modules", "amqplib", "package.json")));
    console.log(JSON.stringify({ node: process.versions.node, amqplib: told.version }));
    return;
  }
  const connection = await require("amqplib").connect(url);
  const found = await ROLES[role](connection);
  await connection.close();
  console.log(JSON.stringify(found));
  process.stdin.resume(); // and ends with it
};

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
