package dev.pocketvlm.runtime.sampler

/**
 * numpy's `Generator(PCG64(seed))`: O'Neill's PCG XSL-RR 128/64, seeded through [seedWords]. Equal seeds give the numbers
 * that numpy gives.
 */
internal class Pcg64(seed: Long) {
    private var high = 0L
    private var low = 0L
    private val incrementHigh: Long
    private val incrementLow: Long

    init {
        val (stateHigh, stateLow, sequenceHigh, sequenceLow) = seedWords(seed)
        incrementHigh = (sequenceHigh shl 1) or (sequenceLow ushr 63)
        incrementLow = (sequenceLow shl 1) or 1
        step()
        add(stateHigh, stateLow)
        step()
    }

    /** The next number of [0, 1): 53 random bits. */
    fun nextDouble(): Double = (nextLong() ushr 11) * (1.0 / (1L shl 53))

    fun nextLong(): Long {
        step()
        return java.lang.Long.rotateRight(high xor low, (high ushr 58).toInt())
    }

    private fun step() {
        val product = low * MULTIPLIER_LOW
        high = unsignedMultiplyHigh(low, MULTIPLIER_LOW) + high * MULTIPLIER_LOW + low * MULTIPLIER_HIGH
        low = product
        add(incrementHigh, incrementLow)
    }

    private fun add(otherHigh: Long, otherLow: Long) {
        low += otherLow
        high += otherHigh + if (java.lang.Long.compareUnsigned(low, otherLow) < 0) 1 else 0
    }

    private companion object {
        const val MULTIPLIER_HIGH = 2549297995355413924L
        const val MULTIPLIER_LOW = 4865540595714422341L
    }
}

/** Upper half of the 128-bit product. `Math.multiplyHigh` is newer than Android 8. */
internal fun unsignedMultiplyHigh(a: Long, b: Long): Long {
    val mask = 0xffffffffL
    val (aHigh, aLow) = (a ushr 32) to (a and mask)
    val (bHigh, bLow) = (b ushr 32) to (b and mask)
    val middle = aHigh * bLow + (aLow * bLow ushr 32)
    val other = aLow * bHigh + (middle and mask)
    return aHigh * bHigh + (middle ushr 32) + (other ushr 32)
}

/** `numpy.random.SeedSequence(seed).generate_state(4, uint64)` for a [seed] that is not negative. */
internal fun seedWords(seed: Long): LongArray {
    val pool = mixedPool(intArrayOf(seed.toInt(), (seed ushr 32).toInt()))
    var constant = 0x8b51f9dd.toInt()
    val words = IntArray(8) { index ->
        var value = pool[index % pool.size] xor constant
        constant *= 0x58f38ded
        value *= constant
        value xor (value ushr 16)
    }
    return LongArray(4) { (words[2 * it + 1].toLong() shl 32) or (words[2 * it].toLong() and 0xffffffffL) }
}

/** Spreads the seed's 32-bit words, lowest first, over a pool of four. A missing word counts as 0, as in numpy. */
private fun mixedPool(entropy: IntArray): IntArray {
    var constant = 0x43b0d7e5
    fun hash(word: Int): Int {
        var value = word xor constant
        constant *= 0x931e8875.toInt()
        value *= constant
        return value xor (value ushr 16)
    }
    val pool = IntArray(4) { hash(entropy.getOrElse(it) { 0 }) }
    for (source in pool.indices) {
        for (target in pool.indices) {
            if (source != target) {
                val mixed = 0xca01f9dd.toInt() * pool[target] - 0x4973f715 * hash(pool[source])
                pool[target] = mixed xor (mixed ushr 16)
            }
        }
    }
    return pool
}
