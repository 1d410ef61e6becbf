// Load for an etcd cluster that runs already, over gRPC: one JSON object with rate and latencies on stdout.
//
// Used by benchmarks/etcd_cluster.py, which starts the cluster and builds this program from Debian's packages golang-go and
// golang-etcd-server-dev. Each client writes in a loop: one put, or one transaction of -batch puts.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math/rand"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/clientv3"
)

var (
	endpoint    = flag.String("endpoint", "", "URL of the member that gets the writes")
	clients     = flag.Int("clients", 1, "writes at the same time")
	connections = flag.Int("connections", 8, "the most gRPC connections")
	seconds     = flag.Float64("seconds", 2, "seconds of load; 0: write each key once, and end")
	keys        = flag.Int("keys", 10000, "number of keys")
	size        = flag.Int("bytes", 787, "size of a value")
	batch       = flag.Int("batch", 1, "puts in a transaction")
)

func main() {
	flag.Parse()
	var open []*clientv3.Client
	for i := 0; i < *connections && i < *clients; i++ {
		client, err := clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, DialTimeout: 5 * time.Second})
		must(err)
		defer client.Close()
		_, err = client.Get(context.Background(), key(0))
		must(err)
		open = append(open, client)
	}
	value := text(*size)
	if *seconds == 0 {
		for low := 0; low < *keys; low += *batch {
			must(write(open[0], value, low, *batch))
		}
		return
	}
	latencies := make([][]float64, *clients)
	before, start := cpuSeconds(), time.Now()
	end := start.Add(time.Duration(*seconds * 1e9))
	var group sync.WaitGroup
	for i := 0; i < *clients; i++ {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			random := rand.New(rand.NewSource(int64(i)*7919 + start.UnixNano()))
			for time.Now().Before(end) {
				begin := time.Now()
				must(write(open[i%len(open)], value, random.Intn(*keys), *batch))
				latencies[i] = append(latencies[i], time.Since(begin).Seconds()*1e3)
			}
		}(i)
	}
	group.Wait()
	took := time.Since(start).Seconds()
	var all []float64
	for _, own := range latencies {
		all = append(all, own...)
	}
	sort.Float64s(all)
	must(json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"writes": float64(len(all) * *batch), "seconds": took, "cpu_seconds": cpuSeconds() - before,
		"p50_ms": all[len(all)/2], "p99_ms": all[len(all)*99/100],
	}))
}

func write(client *clientv3.Client, value string, first, count int) error {
	if count == 1 {
		_, err := client.Put(context.Background(), key(first), value)
		return err
	}
	var puts []clientv3.Op
	for i := first; i < first+count; i++ {
		puts = append(puts, clientv3.OpPut(key(i%*keys), value))
	}
	_, err := client.Txn(context.Background()).Then(puts...).Commit()
	return err
}

func key(i int) string { return fmt.Sprintf("/containers/container-%012d", i) }

func text(size int) string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789-_\":,{}"
	random, bytes := rand.New(rand.NewSource(1)), make([]byte, size)
	for i := range bytes {
		bytes[i] = letters[random.Intn(len(letters))]
	}
	return string(bytes)
}

func cpuSeconds() float64 {
	var used syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return float64(used.Utime.Sec+used.Stime.Sec) + float64(used.Utime.Usec+used.Stime.Usec)/1e6
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
