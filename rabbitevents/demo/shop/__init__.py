"""The shop: five services that know nothing of each other but their events.

    OrderPlaced -> InventoryReserved -> PaymentProcessed -> OrderConfirmed -> NotificationSent
                |                    `> PaymentDeclined  -> OrderCancelled -> NotificationSent, and the stock is given back
                `> OutOfStock -> OrderCancelled -> NotificationSent

With a store, somebody waits for payments: where none comes, PaymentOverdue -> OrderCancelled (`paying`).

`InventoryUpdated` follows every change of stock, `OrderAnalyticsUpdated` every change of an order. Each service is a
module with a router and a state of its own, and runs as well in a process of its own.
"""
