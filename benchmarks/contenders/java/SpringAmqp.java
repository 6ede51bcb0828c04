import java.net.URI;
import java.util.Date;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.function.Consumer;
import org.springframework.amqp.core.MessageDeliveryMode;
import org.springframework.amqp.rabbit.annotation.EnableRabbit;
import org.springframework.amqp.rabbit.annotation.RabbitListener;
import org.springframework.amqp.rabbit.config.SimpleRabbitListenerContainerFactory;
import org.springframework.amqp.rabbit.connection.CachingConnectionFactory;
import org.springframework.amqp.rabbit.connection.CorrelationData;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.amqp.rabbit.listener.RabbitListenerEndpointRegistry;
import org.springframework.amqp.support.converter.JacksonJsonMessageConverter;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;

/** Spring AMQP: a {@code RabbitTemplate} with correlated confirms, a {@code @RabbitListener} with a typed parameter. */
final class SpringAmqp implements Contenders.Client {
    private static Contenders.Told told;
    private static Consumer<Contenders.OrderPlaced> handle;
    private static int workers = 1;

    @Configuration
    @EnableRabbit
    static class Setup {
        @Bean
        CachingConnectionFactory connectionFactory() {
            CachingConnectionFactory factory = new CachingConnectionFactory(URI.create(told.url()));
            factory.setPublisherConfirmType(CachingConnectionFactory.ConfirmType.CORRELATED);
            factory.setPublisherReturns(true);
            return factory;
        }

        @Bean
        RabbitTemplate template(CachingConnectionFactory factory) {
            RabbitTemplate template = new RabbitTemplate(factory);
            template.setMessageConverter(new JacksonJsonMessageConverter());
            template.setMandatory(true);
            return template;
        }

        @Bean
        SimpleRabbitListenerContainerFactory rabbitListenerContainerFactory(CachingConnectionFactory connections) {
            SimpleRabbitListenerContainerFactory factory = new SimpleRabbitListenerContainerFactory();
            factory.setConnectionFactory(connections);
            factory.setMessageConverter(new JacksonJsonMessageConverter());
            factory.setConcurrentConsumers(workers);
            factory.setPrefetchCount(Contenders.PREFETCH / workers);
            return factory;
        }

        @Bean
        String queueName() {
            return told.queue();
        }

        @Bean
        Listener listener() {
            return new Listener();
        }
    }

    static class Listener {
        @RabbitListener(id = "orders", queues = "#{queueName}", autoStartup = "false")
        public void onOrder(Contenders.OrderPlaced order) {
            handle.accept(order);
        }
    }

    private final AnnotationConfigApplicationContext context;
    private final RabbitTemplate template;

    SpringAmqp(Contenders.Told words) {
        told = words;
        if (words.role().equals("consume_slow")) workers = Contenders.WORKERS;
        context = new AnnotationConfigApplicationContext(Setup.class);
        template = context.getBean(RabbitTemplate.class);
    }

    @Override
    public CompletableFuture<?> publish(Contenders.OrderPlaced order) {
        CorrelationData correlation = new CorrelationData(UUID.randomUUID().toString());
        template.convertAndSend(told.exchange(), Contenders.TYPE, order, message -> {
            message.getMessageProperties().setDeliveryMode(MessageDeliveryMode.PERSISTENT);
            message.getMessageProperties().setMessageId(correlation.getId());
            message.getMessageProperties().setTimestamp(new Date());
            message.getMessageProperties().setType(Contenders.TYPE);
            message.getMessageProperties().setHeader("event-version", 1);
            message.getMessageProperties().setHeader("entity-type", "order");
            return message;
        }, correlation);
        return correlation.getFuture();
    }

    @Override
    public void consume(int count, Consumer<Contenders.OrderPlaced> told) {
        handle = told;
        context.getBean(RabbitListenerEndpointRegistry.class).getListenerContainer("orders").start();
    }

    @Override
    public void close() {
        context.close();
    }
}
