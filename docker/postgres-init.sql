-- Run once by the PostgreSQL image, on an empty volume: Label Studio and the backend each have a database of their own.
CREATE DATABASE softmatcher;
