// What Go's two contenders have in common: the order, the clock, the words, the line of JSON.
// benchmarks/README.md says what the words are.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	inFlight = 500
	prefetch = 200
	workers  = 100 // of a handler that takes 5 ms
	typeName = "order.placed"
	quiet    = 300 * time.Millisecond // before the end: one too many would be seen, and acknowledgements are
)

type item struct {
	ProductID string  `json:"product_id"`
	Title     string  `json:"title"`
	Quantity  int     `json:"quantity"`
	Price     float64 `json:"price"`
}

type orderPlaced struct {
	OrderID    string  `json:"order_id"`
	CustomerID string  `json:"customer_id"`
	Currency   string  `json:"currency"`
	Total      float64 `json:"total"`
	Items      []item  `json:"items"`
	Note       string  `json:"note"`
}

var catalogue = []item{
	{"product-1001", "Kettle, 1.7 litres", 2, 21.5},
	{"product-1002", "Teapot, stoneware", 1, 39.75},
	{"product-1003", "Tea, Assam", 1, 4.5},
}

// told is what the command line says.
type told struct {
	role, url, exchange, queue               string
	events, warmUp, first, items, note, rate int
}

func (t told) order(number int) orderPlaced {
	return orderPlaced{
		OrderID:    fmt.Sprintf("order-%08d", number),
		CustomerID: fmt.Sprintf("customer-%05d", number%997),
		Currency:   "EUR",
		Total:      87.25,
		Items:      catalogue[:t.items],
		Note:       strings.Repeat("x", t.note),
	}
}

// client is what a contender fills in. publish returns once the event is confirmed; send returns a function that waits
// for the confirm; consume calls handle for each order, with so many workers, and acknowledges what it has handled.
type client interface {
	publish(order orderPlaced) error
	send(order orderPlaced) (func() error, error)
	consume(workers int, handle func(order orderPlaced)) error
	close()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// --- the clock ---

type clock struct {
	wall time.Time
	cpu  time.Duration
}

func cpuTime() time.Duration {
	var used syscall.Rusage
	check(syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func startClock() clock { return clock{time.Now(), cpuTime()} }

func (c clock) reading(events int) map[string]any {
	seconds, cpu := time.Since(c.wall).Seconds(), (cpuTime() - c.cpu).Seconds()
	return map[string]any{"events": events, "seconds": seconds, "cpu_seconds": cpu}
}

// tally starts the clock after the warm-up, and tells when all orders are there.
type tally struct {
	told    told
	lock    sync.Mutex
	seen    []bool
	handled int
	differs int
	clock   clock
	reading map[string]any
	done    chan struct{}
}

func newTally(t told) *tally {
	return &tally{told: t, seen: make([]bool, t.events+t.warmUp), done: make(chan struct{})}
}

func (y *tally) handle(order orderPlaced) {
	number, err := strconv.Atoi(strings.TrimPrefix(order.OrderID, "order-"))
	check(err)
	y.lock.Lock()
	defer y.lock.Unlock()
	if number -= y.told.first; number >= 0 && number < len(y.seen) && !y.seen[number] {
		y.seen[number] = true
		y.differs++
	}
	y.handled++
	if y.handled == y.told.warmUp {
		y.clock = startClock()
	}
	if y.handled == len(y.seen) {
		y.reading = y.clock.reading(y.told.events)
		close(y.done)
	}
}

// --- roles ---

func publishOne(t told, c client) map[string]any {
	all := func(from, count int) {
		for number := from; number < from+count; number++ {
			check(c.publish(t.order(number)))
		}
	}
	all(t.first, t.warmUp)
	clock := startClock()
	all(t.first+t.warmUp, t.events)
	return clock.reading(t.events)
}

func publishInFlight(t told, c client) map[string]any {
	all := func(from, count int) {
		numbers := make(chan int)
		var running sync.WaitGroup
		for range inFlight {
			running.Add(1)
			go func() {
				defer running.Done()
				for number := range numbers {
					check(c.publish(t.order(number)))
				}
			}()
		}
		for number := from; number < from+count; number++ {
			numbers <- number
		}
		close(numbers)
		running.Wait()
	}
	all(t.first, t.warmUp)
	clock := startClock()
	all(t.first+t.warmUp, t.events)
	return clock.reading(t.events)
}

func publishBatches(t told, c client) map[string]any {
	all := func(from, count int) {
		for start := from; start < from+count; start += inFlight {
			var waits []func() error
			for number := start; number < min(start+inFlight, from+count); number++ {
				wait, err := c.send(t.order(number))
				check(err)
				waits = append(waits, wait)
			}
			for _, wait := range waits {
				check(wait())
			}
		}
	}
	all(t.first, t.warmUp)
	clock := startClock()
	all(t.first+t.warmUp, t.events)
	return clock.reading(t.events)
}

func consume(t told, c client, workers int, pause time.Duration) map[string]any {
	tally := newTally(t)
	check(c.consume(workers, func(order orderPlaced) {
		if pause > 0 {
			time.Sleep(pause)
		}
		tally.handle(order)
	}))
	<-tally.done
	time.Sleep(quiet)
	tally.lock.Lock()
	defer tally.lock.Unlock()
	tally.reading["handled"], tally.reading["distinct"] = tally.handled, tally.differs
	return tally.reading
}

// latency publishes so many events a second, and times each from before it is published until its handler runs.
func latency(t told, c client) map[string]any {
	total := t.events + t.warmUp
	published, delays := make([]time.Time, total), make([]float64, 0, total)
	var lock sync.Mutex
	done := make(chan struct{})
	check(c.consume(1, func(order orderPlaced) {
		number, _ := strconv.Atoi(strings.TrimPrefix(order.OrderID, "order-"))
		lock.Lock()
		defer lock.Unlock()
		delays = append(delays, time.Since(published[number-t.first]).Seconds()*1e3)
		if len(delays) == total {
			close(done)
		}
	}))
	start := time.Now().Add(300 * time.Millisecond)
	for number := range total {
		time.Sleep(time.Until(start.Add(time.Duration(number) * time.Second / time.Duration(t.rate))))
		go func() {
			order := t.order(t.first + number)
			lock.Lock()
			published[number] = time.Now()
			lock.Unlock()
			check(c.publish(order))
		}()
	}
	<-done
	time.Sleep(quiet)
	measured := slices.Sorted(slices.Values(delays[t.warmUp:]))
	at := func(share float64) float64 { return measured[int(share*float64(len(measured)-1))] }
	return map[string]any{"events": t.events, "p50_ms": at(0.5), "p99_ms": at(0.99), "p999_ms": at(0.999)}
}

func run(t told, c client) map[string]any {
	switch t.role {
	case "publish_one":
		return publishOne(t, c)
	case "publish_in_flight":
		return publishInFlight(t, c)
	case "publish_batches":
		return publishBatches(t, c)
	case "consume":
		return consume(t, c, 1, 0)
	case "consume_slow":
		return consume(t, c, workers, 5*time.Millisecond)
	case "latency":
		return latency(t, c)
	}
	log.Fatalf("no role %q", t.role)
	return nil
}

func versions(who string) map[string]string {
	found := map[string]string{"go": strings.TrimPrefix(runtime.Version(), "go")}
	built, _ := debug.ReadBuildInfo()
	for _, module := range built.Deps {
		if strings.Contains(module.Path, who) || strings.Contains(module.Path, "amqp091") {
			found[module.Path[strings.Index(module.Path, "/")+1:]] = strings.TrimPrefix(module.Version, "v")
		}
	}
	return found
}

func say(found any) { check(json.NewEncoder(os.Stdout).Encode(found)) }

func main() {
	log.SetFlags(0)
	who, words := os.Args[1], os.Args[2:]
	if words[0] == "versions" {
		say(versions(who))
		return
	}
	numbers := make([]int, 6)
	for i := range numbers {
		var err error
		numbers[i], err = strconv.Atoi(words[4+i])
		check(err)
	}
	t := told{words[0], words[1], words[2], words[3], numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]}
	c := map[string]func(told) client{"amqp091": newAmqp091, "watermill": newWatermill}[who](t)
	found := run(t, c)
	c.close()
	say(found)
	_, _ = io.Copy(io.Discard, os.Stdin)
}
