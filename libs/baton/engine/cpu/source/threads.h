// How work is spread over threads: on those of torch, where its OpenMP runtime is known, so that products and kernels
// share one team and no thread of one waits for a core that a thread of the other holds; else on a pool of own ones.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace baton {

// GOMP_parallel(function, argument, threads, flags) of GNU's OpenMP runtime, which others offer too: calls
// function(argument) once on each thread of a team, the caller's among them, and returns when all have.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline std::atomic<Team>& team() {
    static std::atomic<Team> known{nullptr};
    return known;
}

// Threads that sleep while there is nothing to do. One caller at a time per process is served in parallel; another
// caller meanwhile does its work alone.
class Pool {
  public:
    using Call = void (*)(const void*, int64_t);

    static void run(int64_t tasks, int threads, Call call, const void* work) {
        Pool& pool = shared();
        if (!pool.busy_.try_lock()) {
            for (int64_t task = 0; task < tasks; task++) call(work, task);
            return;
        }
        pool.parallel(tasks, std::min<int64_t>(threads, tasks), call, work);
        pool.busy_.unlock();
    }

  private:
    // A forked child has none of its parent's threads: it gets a new pool. Pools live as long as the process.
    static Pool& shared() {
        static std::atomic<Pool*> pool{new Pool};
        Pool* current = pool.load();
        if (current->pid_ != getpid()) {
            Pool* fresh = new Pool;
            if (pool.compare_exchange_strong(current, fresh)) return *fresh;
            delete fresh;
        }
        return *current;
    }

    void parallel(int64_t tasks, int threads, Call call, const void* work) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while ((int)threads_.size() < threads - 1) {
                int index = (int)threads_.size();
                threads_.emplace_back([this, index] { serve(index); });
                threads_.back().detach();
            }
            call_ = call, work_ = work, tasks_ = tasks, helpers_ = threads - 1, running_ = threads - 1;
            next_.store(0);
            turn_++;
        }
        wake_.notify_all();
        drain(call, work, tasks);
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return running_ == 0; });
    }

    void drain(Call call, const void* work, int64_t tasks) {
        for (int64_t task; (task = next_.fetch_add(1)) < tasks;) call(work, task);
    }

    void serve(int index) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return turn_ != seen; });
            seen = turn_;
            if (index >= helpers_) continue;
            Call call = call_;
            const void* work = work_;
            int64_t tasks = tasks_;
            lock.unlock();
            drain(call, work, tasks);
            lock.lock();
            if (--running_ == 0) done_.notify_one();
        }
    }

    const pid_t pid_ = getpid();
    std::mutex busy_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> threads_;
    std::atomic<int64_t> next_{0};
    Call call_ = nullptr;
    const void* work_ = nullptr;
    int64_t tasks_ = 0;
    int helpers_ = 0, running_ = 0;
    uint64_t turn_ = 0;
};

// Calls work(task) for each task in [0, tasks), on up to `threads` threads, the caller's among them.
template <class Work>
void share_out(int64_t tasks, int threads, const Work& work) {
    if (threads <= 1 || tasks <= 1) {
        for (int64_t task = 0; task < tasks; task++) work(task);
    } else if (const Team together = team().load(std::memory_order_relaxed)) {
        // Always the whole team: runtimes end threads that a smaller one does not need.
        struct Shared {
            const Work& work;
            int64_t tasks;
            std::atomic<int64_t> next{0};
        } shared{work, tasks};
        const auto drain = [](void* at) {
            Shared& mine = *static_cast<Shared*>(at);
            for (int64_t task; (task = mine.next.fetch_add(1)) < mine.tasks;) mine.work(task);
        };
        together(drain, &shared, (unsigned)threads, 0);
    } else {
        Pool::run(tasks, threads, [](const void* w, int64_t task) { (*static_cast<const Work*>(w))(task); }, &work);
    }
}

}  // namespace baton
