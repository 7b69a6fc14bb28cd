//! What a run asks for in one piece: a length that a peer only claims must reserve nothing.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

struct Measured;

#[global_allocator]
static MEMORY: Measured = Measured;
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: each call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Measured {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Relaxed);
        unsafe { System.realloc(at, layout, size) }
    }
}

/// Does `what`, which must not ask for more than `most` bytes in one piece.
pub fn within<T>(most: usize, what: impl FnOnce() -> T) -> T {
    LARGEST.store(0, Relaxed);
    let value = what();
    let largest = LARGEST.load(Relaxed);
    assert!(largest <= most, "{largest} bytes in one piece, at most {most} are due");
    value
}
