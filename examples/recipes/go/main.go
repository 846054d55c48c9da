// `/` answers the worker's pid, `/grow` takes memory until the fence ends it.
package main

import (
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// notify sends assignments to paddock, as sd_notify(3) does.
func notify(state string) {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return // Nobody wants to know.
	}
	defer conn.Close()
	conn.Write([]byte(state))
}

var (
	served   atomic.Int64
	told     atomic.Int64 // When the count was last sent.
	quota, _ = strconv.ParseInt(os.Getenv("PADDOCK_MAX_REQUESTS"), 10, 64)
)

// count says how many requests were served: on reaching the quota, else at most ten times a second.
func count() {
	total, now, last := served.Add(1), time.Now().UnixMilli(), told.Load()
	if total == quota || now-last >= 100 && told.CompareAndSwap(last, now) {
		notify(fmt.Sprintf("X_PADDOCK_REQUESTS=%d", total))
	}
}

func main() {
	// The first of the sockets that paddock holds. No worker binds anything.
	listener, err := net.FileListener(os.NewFile(3, "http"))
	if err != nil {
		log.Fatal(err)
	}
	var draining atomic.Bool
	var open atomic.Int64
	ended := make(chan struct{}, 1)
	handler := func(response http.ResponseWriter, request *http.Request) {
		defer count()
		if request.URL.Path == "/grow" {
			// Given back when it is answered; it is not, where [memory] max is enforced.
			var taken [][]byte
			for megabyte := 0; megabyte < 256; megabyte++ {
				piece := make([]byte, 1<<20)
				for at := range piece {
					piece[at] = 'x'
				}
				taken = append(taken, piece)
			}
			defer func() { _ = taken[0] }()
		}
		if draining.Load() {
			response.Header().Set("Connection", "close")
		}
		fmt.Fprint(response, os.Getpid())
	}
	server := &http.Server{
		Handler:     http.HandlerFunc(handler),
		IdleTimeout: 5 * time.Second,
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed, http.StateHijacked:
				if open.Add(-1) == 0 {
					select {
					case ended <- struct{}{}:
					default:
					}
				}
			}
		},
	}
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	go func() {
		<-asked
		// Not Shutdown: it closes connections that wait for their next request, and a client that is just sending it
		// loses it. So only the listening ends; each connection ends with its next answer, or after IdleTimeout.
		draining.Store(true)
		listener.Close()
	}()
	notify("READY=1")
	if err := server.Serve(listener); !draining.Load() {
		log.Fatal(err)
	}
	for open.Load() > 0 {
		<-ended
	}
	notify(fmt.Sprintf("X_PADDOCK_REQUESTS=%d", served.Load()))
}
