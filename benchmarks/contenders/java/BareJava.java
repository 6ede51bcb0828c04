import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import java.io.IOException;
import java.util.Date;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentNavigableMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.function.Consumer;

/** RabbitMQ's own client for Java, by hand: confirms by a listener and a sorted map, as its tutorial shows it. */
final class BareJava implements Contenders.Client {
    private final Contenders.Told told;
    private final Connection connection;
    private final Channel publishing;
    private final ConcurrentNavigableMap<Long, CompletableFuture<Void>> outstanding = new ConcurrentSkipListMap<>();
    private Channel consuming;
    private ExecutorService workers;

    BareJava(Contenders.Told told) throws Exception {
        this.told = told;
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(told.url());
        connection = factory.newConnection();
        publishing = connection.createChannel();
        publishing.confirmSelect();
        publishing.addConfirmListener(this::confirmed, (tag, multiple) -> Contenders.die(new IOException("refused")));
    }

    private void confirmed(long tag, boolean multiple) {
        if (multiple) {
            Map<Long, CompletableFuture<Void>> all = outstanding.headMap(tag, true);
            all.values().forEach(wait -> wait.complete(null));
            all.clear();
        } else {
            outstanding.remove(tag).complete(null);
        }
    }

    @Override
    public CompletableFuture<?> publish(Contenders.OrderPlaced order) throws IOException {
        CompletableFuture<Void> wait = new CompletableFuture<>();
        outstanding.put(publishing.getNextPublishSeqNo(), wait);
        AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder()
                .contentType("application/json").deliveryMode(2).messageId(UUID.randomUUID().toString())
                .timestamp(new Date()).type(Contenders.TYPE)
                .headers(Map.of("event-version", 1, "entity-type", "order")).build();
        byte[] body = Contenders.JSON.writeValueAsBytes(order);
        publishing.basicPublish(told.exchange(), Contenders.TYPE, true, false, properties, body);
        return wait;
    }

    @Override
    public void consume(int count, Consumer<Contenders.OrderPlaced> handle) throws IOException {
        if (count > 1) workers = Executors.newFixedThreadPool(count);
        consuming = connection.createChannel();
        consuming.basicQos(Contenders.PREFETCH);
        consuming.basicConsume(told.queue(), false, (consumer, delivery) -> {
            Runnable take = () -> {
                try {
                    handle.accept(Contenders.JSON.readValue(delivery.getBody(), Contenders.OrderPlaced.class));
                    consuming.basicAck(delivery.getEnvelope().getDeliveryTag(), false);
                } catch (Exception error) {
                    Contenders.die(error);
                }
            };
            if (workers == null) take.run();
            else workers.execute(take);
        }, consumer -> {});
    }

    @Override
    public void close() throws Exception {
        if (workers != null) workers.shutdown();
        if (consuming != null) consuming.close();
        connection.close();
    }
}
