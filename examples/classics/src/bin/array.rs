//! An array that processes share: one changes elements, the other sees the changes.

use procession::{Array, Error, Process};

fn square(numbers: Array<i32>) {
    // The guard holds the array's lock; it is a slice.
    let mut numbers = numbers.lock().expect("nobody died with the lock");
    for number in numbers.iter_mut() {
        *number *= *number;
    }
    numbers[0] = -1;
}

fn main() -> Result<(), Error> {
    let numbers = Array::from_slice(&[1, 2, 3, 4, 5])?;
    println!("before: {:?}", numbers.to_vec()?);
    Process::spawn(square, numbers.clone())?.join()?;
    println!("after: {:?}", numbers.to_vec()?);
    for (index, number) in numbers.to_vec()?.iter().enumerate() {
        println!("element {index} of {}: {number}", numbers.len());
    }
    numbers.set(4, 0)?;
    println!("the last one set: {}", numbers.get(4)?);
    Ok(())
}
