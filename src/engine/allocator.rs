//! Large blocks of memory are kept and handed out again.
//!
//! Every layer writes its result into a fresh block of many megabytes and drops its input's. The C library gives such
//! blocks back to the system at once and takes them anew, and each time every 4 kB cost a page fault.
//! Here blocks of 1 MB and more are maps of their own, in huge pages where Linux has them to give, and what is freed is
//! kept for the next of its size. Kept and used blocks together are hardly more than were once in use together, so the
//! program's peak is about what it would have been. Smaller blocks are the system allocator's.
//!
//! Only Linux is served so; elsewhere everything is the system allocator's, and so it is with the feature `system-allocator`, for
//! tools that watch memory, such as valgrind: a block that is kept is to them a block in use.
use super::memory::slack;
use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard};

/// The program's allocator.
struct KeepLarge;

#[global_allocator]
static ALLOCATOR: KeepLarge = KeepLarge;

const LARGE: usize = 1 << 20;
const HUGE_PAGE: usize = 2 << 20;

/// A free block and its whole length.
#[derive(Clone, Copy)]
struct Block(*mut u8, usize);

// SAFETY: a free block belongs to whoever takes it from the list.
unsafe impl Send for Block {}

/// The newest last. An array, because the allocator's own list must not allocate.
struct Kept {
    blocks: [Block; 512],
    count: usize,
    bytes: usize,
    /// Bytes in use now, and the most so far.
    used: usize,
    peak: usize,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    blocks: [Block(null_mut(), 0); 512],
    count: 0,
    bytes: 0,
    used: 0,
    peak: 0,
});

fn kept() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Kept {
    /// Bytes that may be in use or kept together.
    fn limit(&self) -> usize {
        self.peak + slack(self.peak as u64) as usize
    }

    fn remove(&mut self, i: usize) -> Block {
        let block = self.blocks[i];
        self.blocks.copy_within(i + 1..self.count, i);
        self.count -= 1;
        self.bytes -= block.1;
        block
    }

    /// A block of this length for use, and whether it is new and therefore zero; null where there is no memory.
    fn take(&mut self, length: usize) -> (*mut u8, bool) {
        let found = (0..self.count).rev().find(|&i| self.blocks[i].1 == length);
        self.used += length;
        self.peak = self.peak.max(self.used);
        if let Some(i) = found {
            return (self.remove(i).0, false);
        }
        while self.count > 0 && self.used + self.bytes > self.limit() {
            unmap(self.remove(0));
        }
        let block = map(length);
        if block.is_null() {
            self.used -= length;
        }
        (block, true)
    }

    fn put(&mut self, block: Block) {
        if self.count == self.blocks.len() {
            unmap(self.remove(0));
        }
        self.blocks[self.count] = block;
        self.count += 1;
        self.bytes += block.1;
        self.used -= block.1;
    }
}

/// Gives a free block back to the system.
fn unmap(Block(start, length): Block) {
    // SAFETY: a free block is a whole map that nobody uses.
    unsafe { libc::munmap(start.cast(), length) };
}

/// Whole huge pages, and steps of an eighth above, so that blocks of about one size are of one length.
/// None where the size is more than an address can say.
fn length(size: usize) -> Option<usize> {
    let step = (size.checked_next_power_of_two()? / 16).max(HUGE_PAGE);
    size.checked_next_multiple_of(step)
}

fn is_ours(layout: &Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= HUGE_PAGE
}

/// A new map of zeros that begins with a huge page, or null.
fn map(length: usize) -> *mut u8 {
    let Some(room) = length.checked_add(HUGE_PAGE) else {
        return null_mut();
    };
    // SAFETY: a new private map touches nothing that is there; the ends cut off lie inside it.
    unsafe {
        let start = libc::mmap(
            null_mut(),
            room,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if start == libc::MAP_FAILED {
            return null_mut();
        }
        let start: *mut u8 = start.cast();
        let before = start.align_offset(HUGE_PAGE);
        let block = start.add(before);
        if before > 0 {
            libc::munmap(start.cast(), before);
        }
        libc::munmap(block.add(length).cast(), HUGE_PAGE - before);
        // Where there are no huge pages this fails and small ones serve.
        libc::madvise(block.cast(), length, libc::MADV_HUGEPAGE);
        block
    }
}

// SAFETY: a large block is a map of `length(size)` bytes, which alloc and dealloc compute alike from the layout; it is in
// the list or in use, never both. Everything else is the system's.
unsafe impl GlobalAlloc for KeepLarge {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match length(layout.size()).filter(|_| is_ours(&layout)) {
            Some(length) => kept().take(length).0,
            // SAFETY: the caller's contract.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match length(layout.size()).filter(|_| is_ours(&layout)) {
            Some(length) => {
                let (block, new) = kept().take(length);
                if !new {
                    // SAFETY: the block holds `length` bytes, which are not fewer.
                    unsafe { block.write_bytes(0, layout.size()) };
                }
                block
            }
            // SAFETY: the caller's contract.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        match length(layout.size()).filter(|_| is_ours(&layout)) {
            Some(length) => kept().put(Block(block, length)),
            // SAFETY: the caller's contract.
            None => unsafe { System.dealloc(block, layout) },
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller's contract: new_size is not 0 and no layout overflows.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if !is_ours(&layout) && !is_ours(&new) {
            // SAFETY: as above, and the block is the system's.
            return unsafe { System.realloc(block, layout, new_size) };
        }
        if is_ours(&layout) && is_ours(&new) && length(layout.size()) == length(new_size) {
            return block;
        }
        // SAFETY: both blocks hold the smaller size and do not overlap; the old one is freed by its own layout.
        unsafe {
            let to = self.alloc(new);
            if !to.is_null() {
                to.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            to
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_about_one_size_have_one_length() {
        assert_eq!(length(LARGE), Some(HUGE_PAGE));
        assert_eq!(length(5 << 20), Some(6 << 20));
        assert_eq!(length(130 << 20), length(140 << 20));
        assert_eq!(length(usize::MAX), None);
    }

    #[test]
    fn zeroed_memory_is_zero_after_others_wrote_it() {
        for _ in 0..3 {
            let zeros = vec![0u8; 3 << 20];
            assert!(zeros.iter().all(|&x| x == 0));
            let ones = std::hint::black_box(vec![1u8; 3 << 20]);
            drop((zeros, ones));
        }
    }

    #[test]
    fn contents_survive_growing_across_the_limit_and_shrinking_back() {
        let mut v: Vec<u32> = (0..100_000).collect();
        for size in [300_000, 600_000, 9_000_000, 1_000, 500_000] {
            let same = v.len().min(size);
            v.resize(size, 7);
            v.shrink_to_fit();
            assert!(
                v[..same.min(1_000)]
                    .iter()
                    .enumerate()
                    .all(|(i, &x)| x == i as u32)
            );
            assert!(v[same..].iter().all(|&x| x == 7));
        }
    }

    #[test]
    fn used_and_kept_together_are_hardly_more_than_was_used_at_once() {
        for megabytes in [9, 4, 30, 2, 9, 26] {
            drop(
                (0..8)
                    .map(|_| vec![1u8; megabytes << 20])
                    .collect::<Vec<_>>(),
            );
            let kept = kept();
            assert!(kept.used + kept.bytes <= kept.limit());
            assert!(kept.bytes > 0);
        }
    }

    #[test]
    fn an_impossible_size_is_refused_and_not_an_abort() {
        let mut v: Vec<u8> = Vec::new();
        assert!(v.try_reserve_exact(isize::MAX as usize).is_err());
    }
}
