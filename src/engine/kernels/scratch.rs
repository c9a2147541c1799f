//! Working memory of the kernels, kept between calls: a fresh allocation of many megabytes costs a page fault for every 4 kB.
use bytemuck::Pod;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// A vector whose contents are whatever was there: zeroing gigabytes takes as long as reading them does. With debug assertions
/// every bit is set, which makes NaN of all floats, so that tests see what was read too early or never written.
///
/// # Safety
/// Every number is written before it is read.
///
/// # Panics
/// If the memory is not there.
pub unsafe fn unwritten<T: Pod>(len: usize) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    if cfg!(debug_assertions) {
        values.resize(len, T::zeroed());
        bytemuck::cast_slice_mut::<T, u8>(&mut values).fill(!0);
        return values;
    }
    // any bytes are a T, and the room is there
    #[allow(clippy::uninit_vec)]
    values.set_len(len);
    values
}

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// A buffer with unspecified contents (NaN with debug assertions), given back when dropped.
pub struct Scratch {
    buffer: Vec<f32>,
    len: usize,
}

impl Scratch {
    /// The smallest kept buffer that holds `len` numbers, or a new one.
    pub fn take(len: usize) -> Self {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let fitting = (0..pool.len())
            .filter(|&i| pool[i].len() >= len)
            .min_by_key(|&i| pool[i].len());
        // With none large enough one that is too small makes room, so that the pool never holds many sizes of one use.
        let found = fitting.or_else(|| (0..pool.len()).max_by_key(|&i| pool[i].len()));
        let mut buffer = found.map(|i| pool.swap_remove(i)).unwrap_or_default();
        drop(pool);
        if buffer.len() < len {
            // gone before the larger one comes
            buffer = Vec::new();
            buffer.resize(len, 0.0);
        }
        if cfg!(debug_assertions) {
            buffer[..len].fill(f32::NAN);
        }
        Scratch { buffer, len }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        pool.push(std::mem::take(&mut self.buffer));
    }
}

impl Deref for Scratch {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for Scratch {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[..self.len]
    }
}

/// A slice that several tasks write at disjoint places. While it is there nobody else may use the slice.
#[derive(Clone, Copy)]
pub struct Shared<'a>(*mut f32, PhantomData<&'a mut [f32]>);

// SAFETY: this is an address and no more; who writes through it states which range is his alone.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(slice: &'a mut [f32]) -> Self {
        Shared(slice.as_mut_ptr(), PhantomData)
    }
    pub fn pointer(self) -> *mut f32 {
        self.0
    }
}
