import com.fasterxml.jackson.annotation.JsonProperty;
import java.lang.management.ManagementFactory;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.BitSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;
import tools.jackson.databind.json.JsonMapper;

/** What Java's two contenders have in common; benchmarks/README.md says what the words are. */
public class Contenders {
    static final int IN_FLIGHT = 500;
    static final int PREFETCH = 200;
    /** Of a handler that takes 5 ms. */
    static final int WORKERS = 100;
    /** Milliseconds before the end: one too many would be seen, and acknowledgements are. */
    static final int QUIET = 300;
    static final String TYPE = "order.placed";
    static final JsonMapper JSON = JsonMapper.builder().build();

    public record Item(@JsonProperty("product_id") String productId, String title, int quantity, double price) {}

    public record OrderPlaced(
            @JsonProperty("order_id") String orderId, @JsonProperty("customer_id") String customerId, String currency,
            double total, List<Item> items, String note) {
        int number() {
            return Integer.parseInt(orderId.substring("order-".length()));
        }
    }

    static final List<Item> CATALOGUE = List.of(
            new Item("product-1001", "Kettle, 1.7 litres", 2, 21.5),
            new Item("product-1002", "Teapot, stoneware", 1, 39.75),
            new Item("product-1003", "Tea, Assam", 1, 4.5));

    record Told(String role, String url, String exchange, String queue, int events, int warmUp, int first, int items,
                int note, int rate) {
        static Told of(String[] words) {
            int[] numbers = Arrays.stream(words, 5, 11).mapToInt(Integer::parseInt).toArray();
            return new Told(words[1], words[2], words[3], words[4], numbers[0], numbers[1], numbers[2], numbers[3],
                    numbers[4], numbers[5]);
        }

        OrderPlaced order(int number) {
            return new OrderPlaced(String.format("order-%08d", number), String.format("customer-%05d", number % 997),
                    "EUR", 87.25, CATALOGUE.subList(0, items), "x".repeat(note));
        }

        int total() {
            return events + warmUp;
        }
    }

    /** What a contender fills in. */
    interface Client extends AutoCloseable {
        /** Publish an order, and complete what is returned when it is confirmed. */
        CompletableFuture<?> publish(OrderPlaced order) throws Exception;

        /** Call the handler for each order, with so many workers, and acknowledge what it has handled. */
        void consume(int workers, Consumer<OrderPlaced> handle) throws Exception;
    }

    // --- the clock ---

    static final class Clock {
        private final long wall = System.nanoTime();
        private final long cpu = cpuTime();

        static long cpuTime() {
            return ((com.sun.management.OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean())
                    .getProcessCpuTime();
        }

        Map<String, Object> reading(int events) {
            Map<String, Object> found = new LinkedHashMap<>();
            found.put("events", events);
            found.put("seconds", (System.nanoTime() - wall) / 1e9);
            found.put("cpu_seconds", (cpuTime() - cpu) / 1e9);
            return found;
        }
    }

    // --- roles ---

    interface All {
        void publish(int from, int count) throws Exception;
    }

    static Map<String, Object> published(Told told, All all) throws Exception {
        all.publish(told.first, told.warmUp);
        Clock clock = new Clock();
        all.publish(told.first + told.warmUp, told.events);
        return clock.reading(told.events);
    }

    static Map<String, Object> publishOne(Told told, Client client) throws Exception {
        return published(told, (from, count) -> {
            for (int number = from; number < from + count; number++) client.publish(told.order(number)).get();
        });
    }

    static Map<String, Object> publishInFlight(Told told, Client client) throws Exception {
        return published(told, (from, count) -> {
            Semaphore free = new Semaphore(IN_FLIGHT);
            for (int number = from; number < from + count; number++) {
                free.acquire();
                client.publish(told.order(number)).whenComplete((done, error) -> {
                    if (error != null) die(error);
                    free.release();
                });
            }
            free.acquire(IN_FLIGHT);
        });
    }

    static Map<String, Object> publishBatches(Told told, Client client) throws Exception {
        return published(told, (from, count) -> {
            for (int start = from; start < from + count; start += IN_FLIGHT) {
                List<CompletableFuture<?>> waits = new ArrayList<>();
                for (int number = start; number < Math.min(start + IN_FLIGHT, from + count); number++)
                    waits.add(client.publish(told.order(number)));
                for (CompletableFuture<?> wait : waits) wait.get();
            }
        });
    }

    static Map<String, Object> consume(Told told, Client client, int workers, long pause) throws Exception {
        BitSet seen = new BitSet(told.total());
        CountDownLatch complete = new CountDownLatch(1);
        Map<String, Object> found = new LinkedHashMap<>();
        client.consume(workers, new Consumer<>() {
            private int handled;
            private int distinct;
            private Clock clock;

            @Override
            public void accept(OrderPlaced order) {
                if (pause > 0) LockSupport.parkNanos(pause);
                synchronized (found) {
                    int number = order.number() - told.first;
                    if (!seen.get(number)) distinct++;
                    seen.set(number);
                    handled++;
                    if (handled == told.warmUp) clock = new Clock();
                    if (handled == told.total()) {
                        found.putAll(clock.reading(told.events));
                        complete.countDown();
                    }
                    found.put("handled", handled);
                    found.put("distinct", distinct);
                }
            }
        });
        complete.await();
        Thread.sleep(QUIET);
        return found;
    }

    static Map<String, Object> latency(Told told, Client client) throws Exception {
        long[] published = new long[told.total()];
        double[] delays = new double[told.total()];
        CountDownLatch complete = new CountDownLatch(told.total());
        client.consume(1, order -> {
            int number = order.number() - told.first;
            delays[number] = (System.nanoTime() - published[number]) / 1e6;
            complete.countDown();
        });
        long start = System.nanoTime() + 300_000_000L;
        for (int number = 0; number < told.total(); number++) {
            long due = start + number * 1_000_000_000L / told.rate;
            for (long early; (early = due - System.nanoTime()) > 0; ) LockSupport.parkNanos(early);
            OrderPlaced order = told.order(told.first + number);
            published[number] = System.nanoTime();
            client.publish(order);
        }
        complete.await();
        Thread.sleep(QUIET);
        double[] measured = Arrays.copyOfRange(delays, told.warmUp, told.total());
        Arrays.sort(measured);
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("events", told.events);
        found.put("p50_ms", measured[(int) (0.5 * (measured.length - 1))]);
        found.put("p99_ms", measured[(int) (0.99 * (measured.length - 1))]);
        found.put("p999_ms", measured[(int) (0.999 * (measured.length - 1))]);
        return found;
    }

    static Map<String, Object> run(Told told, Client client) throws Exception {
        return switch (told.role) {
            case "publish_one" -> publishOne(told, client);
            case "publish_in_flight" -> publishInFlight(told, client);
            case "publish_batches" -> publishBatches(told, client);
            case "consume" -> consume(told, client, 1, 0);
            case "consume_slow" -> consume(told, client, WORKERS, 5_000_000L);
            case "latency" -> latency(told, client);
            default -> throw new IllegalArgumentException("no role " + told.role);
        };
    }

    static void die(Throwable error) {
        error.printStackTrace();
        Runtime.getRuntime().halt(1);
    }

    static Map<String, Object> versions(String who) {
        Map<String, Object> found = new LinkedHashMap<>();
        found.put("java", System.getProperty("java.version"));
        found.put("amqp-client", com.rabbitmq.client.impl.ClientVersion.VERSION);
        if (who.equals("spring"))
            found.put("spring-rabbit", org.springframework.amqp.rabbit.core.RabbitTemplate.class.getPackage().getImplementationVersion());
        return found;
    }

    public static void main(String[] words) {
        try {
            if (words[1].equals("versions")) {
                System.out.println(JSON.writeValueAsString(versions(words[0])));
                return;
            }
            Told told = Told.of(words);
            Map<String, Object> found;
            try (Client client = words[0].equals("spring") ? new SpringAmqp(told) : new BareJava(told)) {
                found = run(told, client);
            }
            System.out.println(JSON.writeValueAsString(found));
            while (System.in.read() != -1) {}
            System.exit(0);
        } catch (Exception error) {
            die(error);
        }
    }
}
