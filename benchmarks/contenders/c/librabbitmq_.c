/* The limit: what RabbitMQ's C library does, and nothing around it. `benchmarks/README.md` says what the words are.
 *
 * There is no JSON library here: the order is written by snprintf, and of one that came the id is read.
 */
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CHANNEL 1
#define IN_FLIGHT 500
#define PREFETCH 200

static amqp_connection_state_t connection;
static char *exchange, *queue, *note, items[4096];
static long events, warm_up, first;
static double wall, cpu;

static void check(int wrong, const char *what) {
  if (wrong) {
    fprintf(stderr, "librabbitmq: %s has failed\n", what);
    exit(1);
  }
}

static void check_reply(const char *what) {
  check(amqp_get_rpc_reply(connection).reply_type != AMQP_RESPONSE_NORMAL, what);
}

static double now(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void start_clock(void) {
  wall = now(CLOCK_MONOTONIC);
  cpu = now(CLOCK_PROCESS_CPUTIME_ID);
}

static void stop_clock(void) {
  wall = now(CLOCK_MONOTONIC) - wall;
  cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
}

static void connect_to(char *url) {
  struct amqp_connection_info to;
  amqp_default_connection_info(&to);
  check(amqp_parse_url(url, &to) != AMQP_STATUS_OK, "reading the URL");
  connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  check(amqp_socket_open(socket, to.host, to.port) != AMQP_STATUS_OK, "connecting");
  amqp_rpc_reply_t reply =
      amqp_login(connection, to.vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, to.user, to.password);
  check(reply.reply_type != AMQP_RESPONSE_NORMAL, "the login");
  amqp_channel_open(connection, CHANNEL);
  check_reply("opening a channel");
}

/* --- publishing --- */

static void publish(long number) {
  static char body[1 << 19];
  char id[37];
  int size = snprintf(body, sizeof body,
                      "{\"order_id\":\"order-%08ld\",\"customer_id\":\"customer-%05ld\",\"currency\":\"EUR\","
                      "\"total\":87.25,\"items\":[%s],\"note\":\"%s\"}",
                      number, number % 997, items, note);
  snprintf(id, sizeof id, "01936b2e-7c1a-7e3b-9f00-%012lx", number);
  amqp_table_entry_t headers[2];
  headers[0].key = amqp_cstring_bytes("event-version");
  headers[0].value.kind = AMQP_FIELD_KIND_I32;
  headers[0].value.value.i32 = 1;
  headers[1].key = amqp_cstring_bytes("entity-type");
  headers[1].value.kind = AMQP_FIELD_KIND_UTF8;
  headers[1].value.value.bytes = amqp_cstring_bytes("order");
  amqp_basic_properties_t properties;
  properties._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG | AMQP_BASIC_HEADERS_FLAG |
                      AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG | AMQP_BASIC_TYPE_FLAG;
  properties.content_type = amqp_cstring_bytes("application/json");
  properties.delivery_mode = 2;
  properties.headers.num_entries = 2;
  properties.headers.entries = headers;
  properties.message_id = amqp_cstring_bytes(id);
  properties.timestamp = (uint64_t)time(NULL);
  properties.type = amqp_cstring_bytes("order.placed");
  amqp_bytes_t content = {(size_t)size, body};
  check(amqp_basic_publish(connection, CHANNEL, amqp_cstring_bytes(exchange), amqp_cstring_bytes("order.placed"), 1, 0,
                           &properties, content) != AMQP_STATUS_OK,
        "publishing");
}

static uint64_t confirmed, lowest = 1; /* how many; all below the lowest are */
static char *is_confirmed;

static void confirm(uint64_t tag) {
  if (!is_confirmed[tag]) is_confirmed[tag] = 1, confirmed++;
}

/* Wait for one frame, which is a confirm; a multiple one is for all up to its tag. */
static void take_confirm(void) {
  amqp_frame_t frame;
  check(amqp_simple_wait_frame(connection, &frame) != AMQP_STATUS_OK, "waiting for a confirm");
  check(frame.frame_type != AMQP_FRAME_METHOD || frame.payload.method.id != AMQP_BASIC_ACK_METHOD, "a confirm");
  amqp_basic_ack_t *ack = frame.payload.method.decoded;
  if (ack->multiple)
    for (; lowest <= ack->delivery_tag; lowest++) confirm(lowest);
  else
    confirm(ack->delivery_tag);
  amqp_maybe_release_buffers_on_channel(connection, CHANNEL);
}

static void publish_all(long from, long count, long in_flight, int at_a_time) {
  static uint64_t published;
  for (long number = from; number < from + count; number++) {
    publish(number);
    published++;
    if (at_a_time) {
      if ((number - from + 1) % in_flight == 0)
        while (confirmed < published) take_confirm();
    } else {
      while (published - confirmed >= (uint64_t)in_flight) {
        do take_confirm();
        while (confirmed < published && (amqp_frames_enqueued(connection) || amqp_data_in_buffer(connection)));
      }
    }
  }
  while (confirmed < published) take_confirm();
}

static void run_publish(long in_flight, int at_a_time) {
  amqp_confirm_select(connection, CHANNEL);
  check_reply("confirm.select");
  is_confirmed = calloc((size_t)(events + warm_up) + 1, 1);
  publish_all(first, warm_up, in_flight, at_a_time);
  start_clock();
  publish_all(first + warm_up, events, in_flight, at_a_time);
  stop_clock();
  printf("{\"events\":%ld,\"seconds\":%.6f,\"cpu_seconds\":%.6f}\n", events, wall, cpu);
}

/* --- consuming --- */

static void run_consume(void) {
  long seen = 0, distinct = 0, total = events + warm_up;
  char *was_seen = calloc((size_t)total, 1);
  amqp_basic_qos(connection, CHANNEL, 0, PREFETCH, 0);
  check_reply("basic.qos");
  amqp_basic_consume(connection, CHANNEL, amqp_cstring_bytes(queue), amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
  check_reply("basic.consume");
  while (seen < total) {
    amqp_envelope_t envelope;
    amqp_maybe_release_buffers(connection);
    amqp_rpc_reply_t reply = amqp_consume_message(connection, &envelope, NULL, 0);
    check(reply.reply_type != AMQP_RESPONSE_NORMAL, "consuming");
    char *id = memmem(envelope.message.body.bytes, envelope.message.body.len, "\"order-", 7);
    check(id == NULL, "reading an order");
    long number = strtol(id + 7, NULL, 10) - first;
    if (number >= 0 && number < total && !was_seen[number]) was_seen[number] = 1, distinct++;
    check(amqp_basic_ack(connection, CHANNEL, envelope.delivery_tag, 0) != AMQP_STATUS_OK, "acknowledging");
    amqp_destroy_envelope(&envelope);
    if (++seen == warm_up) start_clock();
  }
  stop_clock();
  usleep(300000); /* a quorum queue may not see what is acknowledged just before the end */
  amqp_channel_close(connection, CHANNEL, AMQP_REPLY_SUCCESS);
  printf("{\"events\":%ld,\"seconds\":%.6f,\"cpu_seconds\":%.6f,\"handled\":%ld,\"distinct\":%ld}\n", events, wall, cpu,
         seen, distinct);
}

static void make_order(int count, int length) {
  static const char *all[] = {
      "{\"product_id\":\"product-1001\",\"title\":\"Kettle, 1.7 litres\",\"quantity\":2,\"price\":21.5}",
      "{\"product_id\":\"product-1002\",\"title\":\"Teapot, stoneware\",\"quantity\":1,\"price\":39.75}",
      "{\"product_id\":\"product-1003\",\"title\":\"Tea, Assam\",\"quantity\":1,\"price\":4.5}"};
  for (int i = 0; i < count; i++) {
    if (i) strcat(items, ",");
    strcat(items, all[i]);
  }
  note = malloc((size_t)length + 1);
  memset(note, 'x', (size_t)length);
  note[length] = 0;
}

int main(int count, char **words) {
  if (count == 2 && !strcmp(words[1], "versions")) {
    printf("{\"librabbitmq\":\"%s\",\"gcc\":\"%s\"}\n", amqp_version(), __VERSION__);
    return 0;
  }
  check(count != 11, "reading the words");
  char *role = words[1];
  exchange = words[3];
  queue = words[4];
  events = atol(words[5]);
  warm_up = atol(words[6]);
  first = atol(words[7]);
  make_order(atoi(words[8]), atoi(words[9]));
  connect_to(words[2]);
  if (!strcmp(role, "publish_one"))
    run_publish(1, 0);
  else if (!strcmp(role, "publish_in_flight"))
    run_publish(IN_FLIGHT, 0);
  else if (!strcmp(role, "publish_batches"))
    run_publish(IN_FLIGHT, 1);
  else if (!strcmp(role, "consume"))
    run_consume();
  else
    check(1, "knowing the role");
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  fflush(stdout);
  while (getchar() != EOF) {
  }
  return 0;
}
