//! The contenders other than ours, each used as its documentation says.

pub mod crossbeam;
pub mod iceoryx;
pub mod interprocess;
pub mod ipc_channel;
pub mod limits;
pub mod pipe;
pub mod posix_mq;
pub mod seqpacket;
pub mod shmem_ipc;
