//! Several processes ("ranks") that compute one step. In: where they meet, and which of them this one is. Out: sums over all
//! ranks, slices gathered, batch norm over the whole batch, and agreement on small things. `group.cpp` reaches c10d's
//! TCPStore and Gloo; with one process nothing of it is touched. Where every rank has a GPU of its own, tensors there go
//! through NCCL (`nccl.cpp`), as work that is queued like any other; agreement goes over the host all the same.

mod error;
mod link;

use std::ffi::{c_char, c_void};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use tch::{Device, Tensor};

use super::norm::BatchNorm;
use super::{NativeError, check, cuda};
pub use error::GroupError;
pub use link::{Asked, Exchange, Meeting, Watch};
use link::{KEPT, LOOK, Link, NcclId};

unsafe extern "C" {
    fn sdclr_group_leave(id: i64) -> *mut c_char;
    fn sdclr_nccl_version() -> i32;
    fn sdclr_nccl_id(out: *mut NcclId) -> *mut c_char;
    fn sdclr_group_sum(id: i64, in_out: *mut c_void) -> *mut c_char;
    fn sdclr_group_gather(id: i64, own: *mut c_void, out: *mut c_void) -> *mut c_char;
    fn sdclr_group_norm(
        id: i64,
        x: *mut c_void,
        parts: *const *mut c_void,
        epsilon: f64,
        momentum: f64,
        out: *mut c_void,
    ) -> *mut c_char;
}

/// The processes that compute together: by default this one alone. Clones are the same group.
#[derive(Debug, Clone, Default)]
pub struct Group(Option<Arc<Link>>);

impl Group {
    /// Joins the other ranks, and waits for them unless it is asked to `stop`.
    ///
    /// # Errors
    /// They cannot be reached, do not come, say different sizes, or two of them have one number, of which every rank that is
    /// there is told; or it was asked to stop.
    pub fn join(meeting: &Meeting, stop: Asked) -> Result<Self, GroupError> {
        Ok(Self(Some(Arc::new(Link::join(meeting, stop)?))))
    }

    /// Connects the GPUs of the ranks, all of which call this, each with the device that it computes on. Where NCCL cannot,
    /// tensors go over the host, and the log says why.
    ///
    /// # Errors
    /// NCCL was asked for and cannot, ranks differ in what they ask for, or one is lost.
    pub fn connect(&self, device: Device) -> Result<(), GroupError> {
        let Some(link) = &self.0 else { return Ok(()) };
        self.agree("SDCLR_RANKS_EXCHANGE", &format!("{:?}", link.exchange))?;
        // SAFETY: no pointers.
        let version = i64::from(unsafe { sdclr_nccl_version() });
        let gpu = if let Device::Cuda(index) = device { Some(index) } else { None };
        let place = gpu.and_then(cuda::cuda_place).map_or(0, |place| words(&place)[0]);
        let all = self.gathered(&[gpu.is_some().into(), version, place])?;
        let rows: Vec<&[i64]> = all.chunks(3).collect();
        let reason = match why_not(&rows) {
            None if link.exchange == Exchange::Gloo => Some("SDCLR_RANKS_EXCHANGE=gloo".to_owned()),
            reason => reason,
        };
        match (reason, gpu) {
            (Some(reason), _) if link.exchange == Exchange::Nccl => Err(GroupError::NoNccl { reason }),
            (None, Some(gpu)) => {
                let mut own: NcclId = [0; 16];
                if link.rank == 0 {
                    // SAFETY: room for an id of NCCL's, which outlives the call.
                    check(unsafe { sdclr_nccl_id(&raw mut own) })?;
                }
                let mut told = own;
                told.copy_from_slice(&self.gathered(&own)?[..own.len()]);
                link.connect(gpu, told)?;
                let [major, minor, patch] = [version / 10_000, version / 100 % 100, version % 100];
                let graphs = if self.is_recordable() { "" } else { ", and launch every operation of a step" };
                tracing::info!("the ranks exchange through NCCL {major}.{minor}.{patch}{graphs}");
                Ok(())
            }
            (Some(reason), _) if rows.iter().any(|row| row[0] > 0) => {
                tracing::warn!(
                    "the ranks exchange over the host (Gloo) and launch every operation of a step: {reason}"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether what the ranks exchange in a step can be recorded as a CUDA graph. Nothing goes over the host then. Of several
    /// ranks each would have to record at the same step, for the same slices of all of them.
    pub fn is_recordable(&self) -> bool {
        self.0.as_ref().is_none_or(|link| link.size == 1 && link.connected.load(Ordering::SeqCst))
    }

    /// Looks after the other ranks as long as this lives, where their GPUs exchange; elsewhere there is no need to.
    pub fn watch(&self) -> Option<Watch> {
        let connected = self.0.as_ref().filter(|link| link.connected.load(Ordering::SeqCst));
        connected.map(|link| Watch::new(link.clone()))
    }

    /// Makes sure that what came from the GPUs is whole.
    ///
    /// # Errors
    /// A rank was lost meanwhile.
    pub fn check(&self) -> Result<(), GroupError> {
        match &self.0 {
            Some(link) if link.aborted.load(Ordering::SeqCst) => Err(self.explained("NCCL was aborted")),
            _ => Ok(()),
        }
    }

    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |link| link.size)
    }

    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |link| link.rank)
    }

    /// Whether this process computes alone.
    pub fn is_single(&self) -> bool {
        self.0.is_none()
    }

    /// Of `count` things in a row those of this rank: contiguous, in the order of the ranks, differing by at most one.
    pub fn slice(&self, count: usize) -> std::ops::Range<usize> {
        slice_of(count, self.rank(), self.size())
    }

    /// Says how many rows of the next batch this rank has, or why it has none; gives the number of every rank's.
    ///
    /// # Errors
    /// Another rank has no batch, or is lost.
    pub fn begin_step(&self, rows: Result<i64, &str>) -> Result<Vec<i64>, GroupError> {
        let all = self.all_could(rows)?;
        if let Some(link) = &self.0 {
            *link.slices.lock().unwrap_or_else(PoisonError::into_inner) = all.clone();
        }
        Ok(all)
    }

    /// Continues once every rank has done its part; `error` says why this one could not.
    ///
    /// # Errors
    /// Another rank failed, which all of them see, so that they still agree on what comes next; or one is lost.
    pub fn all_well(&self, error: Option<&str>) -> Result<(), GroupError> {
        self.all_could(error.map_or(Ok(0), Err)).map(drop)
    }

    /// The number of every rank, none of which is negative; the error says why this rank has none.
    fn all_could(&self, own: Result<i64, &str>) -> Result<Vec<i64>, GroupError> {
        let Some(link) = &self.0 else { return Ok(own.into_iter().collect()) };
        let key = |rank: usize| format!("could_not/{rank}");
        if let Err(reason) = own {
            link.tell(&key(link.rank), reason)?;
        }
        let all = self.gathered(&[own.unwrap_or(-1)])?;
        let Some(rank) = all.iter().position(|number| *number < 0) else { return Ok(all) };
        let reason = link.hear(&key(rank))?.unwrap_or_default();
        // The next reason has the same place, and the store may end with rank 0: not before all have read.
        self.gathered(&[0])?;
        Err(GroupError::Failed { rank, reason })
    }

    /// The numbers of every rank, as many of each.
    fn gathered(&self, numbers: &[i64]) -> Result<Vec<i64>, GroupError> {
        let Some(link) = &self.0 else { return Ok(numbers.to_vec()) };
        let all = gather(link.id, &Tensor::from_slice(numbers)).map_err(|error| self.explained(error))?;
        Ok(Vec::try_from(all.flatten(0, -1)).map_err(NativeError::from)?)
    }

    /// The largest of all ranks' numbers.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn largest(&self, number: i64) -> Result<i64, GroupError> {
        Ok(self.gathered(&[number])?.into_iter().max().unwrap_or(number))
    }

    /// Makes sure that every rank has the same `text`; `what` names it.
    ///
    /// # Errors
    /// Ranks differ, which every one of them sees, or one is lost.
    pub fn agree(&self, what: &str, text: &str) -> Result<(), GroupError> {
        let Some(link) = &self.0 else { return Ok(()) };
        let all = self.gathered(&words(text))?;
        let rows: Vec<&[i64]> = all.chunks(4).collect();
        let Some(rank) = rows.iter().position(|row| *row != rows[0]) else { return Ok(()) };
        link.tell(&format!("differ/{}", link.rank), text)?;
        self.gathered(&[0])?;
        let said = |rank: usize| Ok::<_, NativeError>(link.hear(&format!("differ/{rank}"))?.unwrap_or_default());
        let (first, other) = (said(0)?, said(rank)?);
        // The store may end with rank 0: not before all have read.
        self.gathered(&[0])?;
        Err(GroupError::Differ { what: what.to_owned(), rank, first, other })
    }

    /// The sums of `tensors` over all ranks, exchanged as one.
    ///
    /// # Errors
    /// A rank is lost.
    pub fn sum(&self, tensors: Vec<Tensor>) -> Result<Vec<Tensor>, GroupError> {
        let Some(link) = &self.0 else { return Ok(tensors) };
        let sizes: Vec<i64> = tensors.iter().map(|tensor| tensor.numel() as i64).collect();
        let lines = tensors.iter().map(|tensor| tensor.f_reshape([-1])).collect::<Result<Vec<_>, _>>();
        let flat = lines.and_then(|lines| Tensor::f_cat(&lines, 0)).map_err(NativeError::from)?;
        // SAFETY: the address of an at::Tensor that nobody else has.
        check(unsafe { sdclr_group_sum(link.id, flat.as_ptr() as *mut c_void) })
            .map_err(|error| self.explained(error))?;
        let parts = flat.f_split_with_sizes(&sizes, 0).map_err(NativeError::from)?;
        let shaped = parts.iter().zip(&tensors).map(|(part, tensor)| part.f_view_as(tensor));
        Ok(shaped.collect::<Result<_, _>>().map_err(NativeError::from)?)
    }

    /// The rows of the whole batch, of which this rank has `own`, in the order of the ranks. A gradient reaches the own
    /// ones alone.
    ///
    /// # Errors
    /// A rank is lost, or these are not as many rows as [`Group::begin_step`] was told.
    pub fn gather_rows(&self, own: &Tensor) -> Result<Tensor, GroupError> {
        let Some(link) = &self.0 else { return Ok(own.shallow_clone()) };
        let slices = link.slices.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let rows = own.size().first().copied().unwrap_or(0);
        if slices.get(link.rank) != Some(&rows) {
            let found = format!("rank {} gathers {rows} rows of a step whose slices are {slices:?}", link.rank);
            return Err(NativeError(found).into());
        }
        let padding = slices.iter().max().unwrap_or(&0) - rows;
        let padded = own.detach().f_constant_pad_nd([0, 0, 0, padding]).map_err(NativeError::from)?;
        let all = gather(link.id, &padded).map_err(|error| self.explained(error))?;
        let part = |(rank, rows): (usize, &i64)| match rank == link.rank {
            true => own.shallow_clone(),
            false => all.get(rank as i64).narrow(0, 0, *rows),
        };
        let parts: Vec<Tensor> = slices.iter().enumerate().map(part).collect();
        Ok(Tensor::f_cat(&parts, 0).map_err(NativeError::from)?)
    }

    /// Batch norm of `x`, this rank's slice, by the statistics of the whole batch; `None` with one process.
    ///
    /// # Panics
    /// As tch's operations do; also where a rank is lost.
    pub fn batch_norm(&self, x: &Tensor, norm: &BatchNorm) -> Option<Tensor> {
        let link = self.0.as_ref()?;
        let parts =
            [norm.weight, norm.bias, norm.running_mean, norm.running_var].map(|part| part.as_ptr() as *mut c_void);
        let out = Tensor::new();
        // SAFETY: addresses of at::Tensors that outlive the call; `out` is nobody else's.
        let done = check(unsafe {
            sdclr_group_norm(
                link.id,
                x.as_ptr() as *mut c_void,
                parts.as_ptr(),
                norm.epsilon,
                norm.momentum,
                out.as_ptr() as *mut c_void,
            )
        });
        match done {
            Ok(()) => Some(out),
            Err(error) => panic!("{error}"),
        }
    }

    /// As rank 0: tells the others, which hear it from [`Group::from_first`].
    ///
    /// # Errors
    /// The store has ended.
    pub fn tell_others(&self, text: &str) -> Result<(), GroupError> {
        let Some(link) = &self.0 else { return Ok(()) };
        Ok(link.tell(&link.next_message(), text)?)
    }

    /// As another rank: what rank 0 tells next, waiting for it however long it takes. Meanwhile rank 0 is told the number of a
    /// `request` that this rank has, above 0: [`Group::request_of_waiting`].
    ///
    /// # Errors
    /// Rank 0 is lost.
    pub fn from_first(&self, request: &dyn Fn() -> i64) -> Result<String, GroupError> {
        let Some(link) = &self.0 else { return Ok(String::new()) };
        let key = link.next_message();
        loop {
            if let Some(text) = link.hear(&key).map_err(|error| self.explained(error))? {
                return Ok(text);
            }
            if let Some(error) = link.failed().map_err(|error| self.explained(error))?.or_else(|| link.gone()) {
                return Err(error);
            }
            let number = request();
            if number > 0 {
                link.tell(REQUEST, &number.to_string()).map_err(|error| self.explained(error))?;
            }
            std::thread::sleep(LOOK * 5);
        }
    }

    /// The number of the request that a rank has which waits for rank 0; 0: there is none.
    pub fn request_of_waiting(&self) -> i64 {
        let told = self.0.as_ref().and_then(|link| link.hear(REQUEST).ok().flatten());
        told.and_then(|number| number.parse().ok()).unwrap_or(0)
    }

    /// Ends this rank's part in the group because of an error: exchanges of the others fail at once, with its `reason`.
    pub fn fail(&self, reason: &str) {
        let Some(link) = &self.0 else { return };
        if link.left.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Err(error) = link.tell(&format!("failed/{}", link.rank), reason) {
            tracing::debug!("the other ranks could not be told: {error}");
        }
        // SAFETY: no pointers.
        if let Err(error) = check(unsafe { sdclr_group_leave(link.id) }) {
            tracing::debug!("the connections to the other ranks could not be closed: {error}");
        }
        // The store ends with this process, and the others still have to read the reason.
        if link.serves {
            std::thread::sleep(KEPT);
        }
    }

    /// Whether this rank's part has ended.
    pub fn has_left(&self) -> bool {
        self.0.as_ref().is_some_and(|link| link.left.load(Ordering::SeqCst))
    }

    /// Why a step of this rank failed with `error`, which the others have not seen: by the end of one of them, or else
    /// by itself, and then they end as well.
    pub fn ended(&self, error: &str) -> GroupError {
        self.cause().unwrap_or_else(|| {
            self.fail(error);
            GroupError::Ended { rank: self.rank(), reason: error.to_owned() }
        })
    }

    /// The other rank by whose end a step of this one may have failed; `None`: there is no sign of one.
    pub fn cause(&self) -> Option<GroupError> {
        let link = self.0.as_ref()?;
        let cause = link.cause();
        if cause.is_some() {
            // Whatever comes next may wait for the GPU, be it to free memory.
            link.abort();
        }
        cause
    }

    /// Why an exchange failed with `error`.
    fn explained(&self, error: impl std::fmt::Display) -> GroupError {
        self.cause().unwrap_or_else(|| {
            self.0.iter().for_each(|link| link.abort());
            GroupError::Apart(error.to_string())
        })
    }
}

/// Where a rank that waits tells of a request.
const REQUEST: &str = "request";

/// Of `count` things in a row those of `rank` of `size`: contiguous, in the order of the ranks, differing by at most one.
pub fn slice_of(count: usize, rank: usize, size: usize) -> std::ops::Range<usize> {
    let (each, rest) = (count / size, count % size);
    let start = rank * each + rank.min(rest);
    start..start + each + usize::from(rank < rest)
}

/// A hash of `text`, as four numbers.
fn words(text: &str) -> Vec<i64> {
    let hash = <sha2::Sha256 as sha2::Digest>::digest(text.as_bytes());
    hash.chunks(8).map(|part| part.iter().fold(0, |word, byte| word << 8 | i64::from(*byte))).collect()
}

/// Why NCCL cannot connect ranks of which each says whether it has a GPU, which NCCL, and which GPU of which machine.
fn why_not(ranks: &[&[i64]]) -> Option<String> {
    if let Some(rank) = ranks.iter().position(|row| row[0] == 0) {
        return Some(format!("rank {rank} computes on the CPU"));
    }
    if let Some(rank) = ranks.iter().position(|row| row[1] == 0) {
        return Some(format!("rank {rank} has no NCCL 2"));
    }
    if let Some(rank) = ranks.iter().position(|row| row[1] != ranks[0][1]) {
        return Some(format!("rank 0 and rank {rank} have two versions of NCCL"));
    }
    if let Some(rank) = ranks.iter().position(|row| row[2] == 0) {
        return Some(format!("the driver does not tell which GPU rank {rank} has"));
    }
    ranks.iter().enumerate().find_map(|(rank, row)| {
        let first = ranks[..rank].iter().position(|other| other[2] == row[2])?;
        Some(format!("rank {first} and rank {rank} share one GPU"))
    })
}

fn gather(id: i64, own: &Tensor) -> Result<Tensor, NativeError> {
    let out = Tensor::new();
    // SAFETY: addresses of at::Tensors that outlive the call; `out` is nobody else's.
    check(unsafe { sdclr_group_gather(id, own.as_ptr() as *mut c_void, out.as_ptr() as *mut c_void) })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_are_contiguous_and_differ_by_at_most_one() {
        for (count, size) in [(16, 1), (16, 2), (13, 3), (13, 4), (4, 4), (2, 3)] {
            let slices: Vec<_> = (0..size).map(|rank| slice_of(count, rank, size)).collect();
            let joined: Vec<usize> = slices.iter().flat_map(Clone::clone).collect();
            assert_eq!(joined, (0..count).collect::<Vec<_>>());
            let lengths: Vec<usize> = slices.iter().map(ExactSizeIterator::len).collect();
            assert!(lengths.iter().max().unwrap() - lengths.iter().min().unwrap() <= 1, "{lengths:?}");
        }
    }

    #[test]
    fn nccl_connects_gpus_that_are_different() {
        // Whether there is a GPU, which NCCL, and which GPU.
        for (ranks, expected) in [
            ([[1, 22_809, 5], [1, 22_809, 6]], None),
            ([[1, 22_809, 5], [1, 22_809, 5]], Some("rank 0 and rank 1 share one GPU")),
            ([[1, 22_809, 5], [1, 0, 6]], Some("rank 1 has no NCCL 2")),
            ([[1, 22_809, 5], [1, 22_703, 6]], Some("rank 0 and rank 1 have two versions of NCCL")),
            ([[1, 22_809, 5], [1, 22_809, 0]], Some("the driver does not tell which GPU rank 1 has")),
            ([[0, 22_809, 0], [1, 22_809, 6]], Some("rank 0 computes on the CPU")),
        ] {
            let rows: Vec<&[i64]> = ranks.iter().map(<[i64; 3]>::as_slice).collect();
            assert_eq!(why_not(&rows).as_deref(), expected);
        }
    }

    #[test]
    fn one_process_alone_exchanges_nothing() {
        let group = Group::default();
        let x = Tensor::from_slice2(&[[1.0, 2.0]]);
        assert_eq!(group.gather_rows(&x).unwrap().data_ptr(), x.data_ptr());
        assert_eq!(group.sum(vec![x.shallow_clone()]).unwrap()[0].data_ptr(), x.data_ptr());
        assert_eq!((group.size(), group.rank(), group.slice(5)), (1, 0, 0..5));
        assert_eq!(group.begin_step(Ok(5)).unwrap(), [5]);
    }
}
